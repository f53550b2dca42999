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
		var record heliograph.Record
		var err error
		// Should the arena grow, earlier records keep the old one alive.
		if arena, record, err = appendRecord(arena, rev, int64(i), ev); err != nil {
			return heliograph.Batch{}, fmt.Errorf("encode revision %d: %w", rev, err)
		}
		records = append(records, record)
	}
	e.arena, e.records = arena, records
	return dropped(heliograph.Batch{Rev: rev, Records: records}), nil
}

// appendRecord appends the record of an event to dst, which it shares.
func appendRecord(dst []byte, rev, sub int64, ev *mvccpb.Event) ([]byte, heliograph.Record, error) {
	kv := ev.Kv
	deleted := ev.Type == mvccpb.Event_DELETE
	if deleted {
		kv = &mvccpb.KeyValue{Key: kv.Key}
	}
	start := len(dst)
	dst = heliograph.RevisionKey{Main: rev, Sub: sub, Delete: deleted}.Append(dst)
	middle := len(dst)
	dst, err := (proto.MarshalOptions{}).MarshalAppend(dst, kv)
	if err != nil {
		return dst, heliograph.Record{}, err
	}
	return dst, heliograph.Record{Key: dst[start:middle:middle], Value: dst[middle:len(dst):len(dst)]}, nil
}
