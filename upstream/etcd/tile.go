package etcd

import (
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// eventOverhead is about what an event takes in memory beyond its key and value.
const eventOverhead = 200 // bytes

// tile is a run of revisions that one watcher delivers.
//
// Invariant: events[:whole] are all events of the revisions up to some
// revision r that have not been taken yet; events[whole:] are of revision r+1,
// of which more may follow in the next fragment.
type tile struct {
	id    int64 // the watcher's
	start int64 // first revision
	end   int64 // behind the last revision; 0 while there is none
	last  int64 // last revision of which an event has come; start-1 at first
	done  bool  // all has come

	// lenient lets the tile begin at start+1: whether etcd still has every
	// event of the revision start is for whoever takes them to judge.
	lenient bool

	events []*mvccpb.Event
	whole  int
	held   int64 // bytes of events
	bytes  int64 // bytes of all events that ever came
	count  int64 // how many that is
	part   int64 // bytes of the events of the revision last
}

// complete returns the last revision that is known to be whole.
func (t *tile) complete() int64 {
	if t.whole < len(t.events) {
		return t.last - 1
	}
	return t.last
}

// take removes the events of the first whole revision and returns them; nil if
// there is none.
func (t *tile) take() []*mvccpb.Event {
	if t.whole == 0 {
		return nil
	}
	rev := t.events[0].Kv.ModRevision
	n := 1
	for n < t.whole && t.events[n].Kv.ModRevision == rev {
		n++
	}
	taken := t.events[:n:n]
	t.events = t.events[n:]
	t.whole -= n
	for _, ev := range taken {
		t.held -= eventBytes(ev)
	}
	return taken
}

func eventBytes(ev *mvccpb.Event) int64 {
	return int64(len(ev.Kv.Key)+len(ev.Kv.Value)) + eventOverhead
}
