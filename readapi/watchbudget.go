package readapi

import (
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// watchBudget bounds what all watch streams of a node hold. When it is full,
// streams park their watches (see watchStream); nothing is lost.
type watchBudget struct {
	perStream, total int64 // bytes
	maxWatches       int64

	used    atomic.Int64 // bytes waiting for clients
	watches atomic.Int64
}

// fairBytes is what a stream may hold even when the others hold all of the
// total: clients that do not read must not slow down those that do.
const fairBytes = 64 << 10

// limit returns how much a stream that holds own bytes may hold when all
// together hold used.
func (b *watchBudget) limit(own, used int64) int64 {
	return min(b.perStream, max(own+b.total-used, fairBytes))
}

// full reports whether a stream that holds own bytes may take no more.
func (b *watchBudget) full(own int64) bool { return own >= b.limit(own, b.used.Load()) }

// roomy reports whether a stream has drained far enough to resume watches.
// The gap to full keeps it from parking and resuming for every response.
func (b *watchBudget) roomy(own int64) bool { return own <= b.limit(own, b.used.Load())/2 }

// reserve takes room for as many of the events, always whole revisions, as a
// stream that holds own bytes may take: none if it is full, else at least one
// revision. It returns their number and what was taken for them in bytes.
func (b *watchBudget) reserve(events []*mvccpb.Event, own int64) (n int, bytes int64) {
	for {
		used := b.used.Load()
		room := b.limit(own, used) - own
		if room <= 0 {
			return 0, 0
		}
		n, bytes = 0, responseBytes
		for ; n < len(events); n++ {
			if bytes >= room && n > 0 && events[n].Kv.ModRevision != events[n-1].Kv.ModRevision {
				break
			}
			bytes += sizeOf(events[n])
		}
		// What all watch comes to all streams at once: they ask at once.
		if b.used.CompareAndSwap(used, used+bytes) {
			return n, bytes
		}
	}
}

// open takes places for one watch and reports whether there were enough.
func (b *watchBudget) open(places int64) bool {
	if b.watches.Add(places) > b.maxWatches {
		b.watches.Add(-places)
		return false
	}
	return true
}

// places is how many watches' places one with this range takes: one, and
// more if its keys are huge, which a count alone would let through.
func places(key, end []byte) int64 { return 1 + int64(len(key)+len(end))/placeBytes }

// placeBytes is more than keys have in practice.
const placeBytes = 4 << 10

// responseBytes is what a response costs besides its events, and eventBytes
// what an event costs besides its key and value: structs and slices, roughly.
const (
	responseBytes = 256
	eventBytes    = 160
)

// sizeOf returns what events hold in memory, roughly, in bytes.
func sizeOf(events ...*mvccpb.Event) int64 {
	var n int64
	for _, ev := range events {
		n += eventBytes + int64(len(ev.Kv.Key)+len(ev.Kv.Value))
		if ev.PrevKv != nil {
			n += int64(len(ev.PrevKv.Key) + len(ev.PrevKv.Value))
		}
	}
	return n
}
