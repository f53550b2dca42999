package source

import (
	"context"
	"log/slog"
	"slices"
	"sort"
	"sync"

	"github.com/heliograph/heliograph/source/session"
)

// feed encodes what is new once for all mirrors at the head. The frames stand in
// a ring with a byte budget; when it is full the oldest goes, and a mirror that
// still needed it reads the history itself. Mirrors look, the feed never waits
// for one, and it rests while no mirror is at the head.
type feed struct {
	replica Replica
	budget  int // of the ring, in bytes
	log     *slog.Logger
	reader  reader        // owned by run
	wake    chan struct{} // capacity 1: there is a first member

	mu      sync.Mutex
	ring    ring
	members int
	changed chan struct{} // closed and replaced when the ring changes
}

// ring is one run of frames, from the first member's coming to the last one's
// going.
//
// Invariants: each frame begins where the one before ends, the last ends at end,
// and all are of one generation of the replica.
type ring struct {
	id     int64 // of the run; 0 is none
	gen    int64
	frames []frame
	bytes  int // what the frames cost
	end    session.Cursor
}

// view is what a mirror at one cursor sees of the feed.
type view struct {
	member  bool           // the mirror belongs to this run
	frame   frame          // the one that begins at the cursor; without data if there is none
	stop    int64          // where frames begin that the mirror can go on with; 0 if none do
	behind  bool           // the frames at the cursor are gone
	end     session.Cursor // of the frames
	changed <-chan struct{}
}

func newFeed(cfg Config, m *metrics) *feed {
	return &feed{
		replica: cfg.Replica,
		budget:  cfg.RingBytes,
		log:     cfg.Log,
		reader:  reader{replica: cfg.Replica, encoded: m.encodedByFeed},
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
}

// join makes a mirror that has been sent everything up to a cursor a member and
// returns the run's id.
func (f *feed) join(at session.Cursor, gen int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.members == 0 || f.ring.gen != gen {
		f.resetLocked(at, gen)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	f.members++
	return f.ring.id
}

// leave ends a membership. One of an earlier run has ended already.
func (f *feed) leave(id int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == 0 || id != f.ring.id {
		return
	}
	if f.members--; f.members == 0 {
		f.resetLocked(session.Cursor{}, 0)
	}
}

// look says what the feed has for a mirror at a cursor, which may be a member of
// run id.
func (f *feed) look(at session.Cursor, gen, id int64) view {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &f.ring
	v := view{member: id != 0 && id == r.id, end: r.end, changed: f.changed}
	if f.members == 0 || r.gen != gen {
		return v
	}
	v.behind = at.Before(r.end) && (len(r.frames) == 0 || at.Before(r.frames[0].from))
	i := sort.Search(len(r.frames), func(i int) bool { return !r.frames[i].from.Before(at) })
	if i < len(r.frames) && r.frames[i].from == at {
		v.frame = r.frames[i]
		return v
	}
	for ; i < len(r.frames); i++ {
		if r.frames[i].from.Sub == 0 {
			v.stop = r.frames[i].from.Rev
			return v
		}
	}
	if at.Before(r.end) && r.end.Sub == 0 {
		v.stop = r.end.Rev
	}
	return v
}

// run fills the ring while there are members, until ctx ends.
func (f *feed) run(ctx context.Context) error {
	for {
		changed := f.replica.Changed()
		more := f.fill()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if more {
			continue
		}
		select {
		case <-changed:
		case <-f.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fill adds one page to the ring and reports whether there may be more.
func (f *feed) fill() bool {
	f.mu.Lock()
	id, gen, from, idle := f.ring.id, f.ring.gen, f.ring.end, f.members == 0
	f.mu.Unlock()
	if idle {
		return false
	}
	if f.replica.Generation() != gen {
		f.end(id)
		return false
	}
	if from.Rev > f.replica.Applied() {
		return false
	}
	n, err := f.reader.read(from, 0)
	if err != nil || f.replica.Generation() != gen {
		// The members read the history themselves and learn why.
		f.log.Debug("feed ended", "rev", from.Rev, "err", err)
		f.end(id)
		return false
	}
	for i := range n {
		fr := f.reader.encode(i)
		fr.data = slices.Clone(fr.data)
		if !f.push(id, fr) {
			return true // another run has begun
		}
	}
	return n > 0
}

// push appends a frame to the ring of run id and drops the oldest ones beyond
// the budget.
func (f *feed) push(id int64, fr frame) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &f.ring
	if r.id != id {
		return false
	}
	r.frames = append(r.frames, fr)
	r.bytes += fr.cost()
	r.end = fr.to
	drop := 0
	for ; r.bytes > f.budget && drop < len(r.frames)-1; drop++ {
		r.bytes -= r.frames[drop].cost()
	}
	clear(r.frames[:drop]) // the array lives on until it is full
	r.frames = r.frames[drop:]
	f.broadcastLocked()
	return true
}

// end ends run id: its members are none any more.
func (f *feed) end(id int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ring.id == id {
		f.resetLocked(session.Cursor{}, 0)
	}
}

func (f *feed) resetLocked(end session.Cursor, gen int64) {
	f.ring = ring{id: f.ring.id + 1, gen: gen, end: end}
	f.members = 0
	f.broadcastLocked()
}

func (f *feed) broadcastLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}
