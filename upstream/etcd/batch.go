package etcd

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/heliograph/heliograph"
)

// keepArena is the largest arena that is kept for the next batch; a rare big
// revision does not hold memory for ever.
const keepArena = 1 << 20 // bytes

// encoder turns the events of a revision into a batch. The memory is used again
// by the next batch.
type encoder struct {
	arena   []byte
	records []heliograph.Record
}

// batch returns the batch of one revision's events, in their order. It is valid
// until the next call.
func (e *encoder) batch(events []*mvccpb.Event) (heliograph.Batch, error) {
	if cap(e.arena) > keepArena {
		e.arena, e.records = nil, nil
	}
	rev := events[0].Kv.ModRevision
	size := 0
	for _, ev := range events {
		size += heliograph.DeleteKeyBytes + len(ev.Kv.Key) + len(ev.Kv.Value) + eventOverhead
	}
	if cap(e.arena) < size {
		e.arena = make([]byte, 0, size)
	}
	arena, records := e.arena[:0], e.records[:0]
	for i, ev := range events {
		kv := ev.Kv
		deleted := ev.Type == mvccpb.Event_DELETE
		if deleted {
			kv = &mvccpb.KeyValue{Key: kv.Key}
		}
		start := len(arena)
		arena = heliograph.RevisionKey{Main: rev, Sub: int64(i), Delete: deleted}.Append(arena)
		middle := len(arena)
		var err error
		if arena, err = (proto.MarshalOptions{}).MarshalAppend(arena, kv); err != nil {
			return heliograph.Batch{}, fmt.Errorf("encode revision %d: %w", rev, err)
		}
		// Should the arena grow, earlier records keep the old one alive.
		records = append(records, heliograph.Record{
			Key:   arena[start:middle:middle],
			Value: arena[middle:len(arena):len(arena)],
		})
	}
	e.arena, e.records = arena, records
	return heliograph.Batch{Rev: rev, Records: records}, nil
}
