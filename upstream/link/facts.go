package link

import (
	"context"
	"sync"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// facts is what a source has told beside revisions and the replica has not been
// told yet: the newest state, however often it changes meanwhile.
//
// Invariant: at most heliograph.MaxLeases leases and as many ids are kept, and no
// id is in both put and removed.
type facts struct {
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	ready   bool // the replica has its snapshot: what it is told stays
	auth    *auth
	reset   bool
	more    bool // the change is not whole yet
	put     map[int64]int64
	removed map[int64]struct{}
}

// auth is the origin's access control.
type auth struct {
	enabled  bool
	revision uint64
}

func newFacts() *facts {
	return &facts{wake: make(chan struct{}, 1), put: make(map[int64]int64), removed: make(map[int64]struct{})}
}

// begin says that the replica has what the source holds, but for entries.
func (f *facts) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready = true
	wake(f.wake)
}

// heard takes what a heartbeat says of access control.
func (f *facts) heard(h wire.Heartbeat) {
	if !h.AuthKnown {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.auth = &auth{h.AuthEnabled, h.AuthRevision}
	wake(f.wake)
}

// leases takes a frame.
func (f *facts) leases(frame wire.Leases) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if frame.Reset {
		if f.more {
			return broken("leases that begin anew within a change")
		}
		f.reset = true
		clear(f.put)
		clear(f.removed)
	}
	for _, l := range frame.Put {
		delete(f.removed, l.ID)
		f.put[l.ID] = l.TTL
	}
	for _, id := range frame.Removed {
		delete(f.put, id)
		if !f.reset {
			f.removed[id] = struct{}{}
		}
	}
	if len(f.put) > heliograph.MaxLeases || len(f.removed) > heliograph.MaxLeases {
		return broken("more than %d leases", heliograph.MaxLeases)
	}
	if f.more = frame.More; !f.more {
		wake(f.wake)
	}
	return nil
}

// takeAuth returns what the replica has not been told of access control; nil if
// there is nothing.
func (f *facts) takeAuth() *auth {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.auth
	f.auth = nil
	return a
}

// takeLeases returns the change that the replica has to be told; an empty one if
// there is none, or if it is not the time.
func (f *facts) takeLeases() heliograph.LeaseChange {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ready || f.more {
		return heliograph.LeaseChange{}
	}
	c := heliograph.LeaseChange{Reset: f.reset}
	for id, ttl := range f.put {
		c.Put = append(c.Put, heliograph.Lease{ID: id, TTL: ttl})
	}
	for id := range f.removed {
		c.Removed = append(c.Removed, id)
	}
	// New ones: a map keeps the size that it once had.
	f.reset, f.put, f.removed = false, make(map[int64]int64), make(map[int64]struct{})
	return c
}

// passFacts tells the replica what the source has told. A replica that cannot take
// it goes on following: revisions matter more.
func (s *session) passFacts(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.facts.wake:
		}
		if a := s.facts.takeAuth(); a != nil {
			if err := s.cfg.Replica.SetAuth(a.enabled, a.revision); err != nil {
				s.cfg.Log.Warn("access control of the origin not noted", "peer", s.peer, "err", err)
			}
		}
		c := s.facts.takeLeases()
		if c.Empty() {
			continue
		}
		if err := s.cfg.Replica.ApplyLeases(c); err != nil {
			s.cfg.Log.Warn("leases of the origin not noted", "peer", s.peer, "err", err)
		}
	}
}
