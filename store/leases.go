package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/heliograph/heliograph"
)

const (
	// maxLeaseLog bounds the changes of leases that are remembered one by one;
	// who has missed more gets the whole list.
	maxLeaseLog = 16 << 10
	// leaseChunk is how many leases change under one lock, so that revisions
	// pass between.
	leaseChunk = 2000
)

// grant is a lease whose TTL is known.
type grant struct {
	ttl int64 // seconds
	// doomed: the source says that it has gone, but keys are still attached.
	// Their deletes are on the way, and take it along.
	doomed bool
}

// leaseLog remembers which leases changed last, not how: that is looked up. The
// change at place i has the number base+1+i.
//
// Invariant: base rises, and is above 0, so that 0 is always in the past.
type leaseLog struct {
	base uint64
	ids  []int64
}

func (l *leaseLog) head() uint64 { return l.base + uint64(len(l.ids)) }

func (l *leaseLog) add(id int64) {
	if len(l.ids) == maxLeaseLog {
		half := len(l.ids) / 2
		l.base += uint64(half)
		l.ids = append(l.ids[:0], l.ids[half:]...)
	}
	l.ids = append(l.ids, id)
}

// forget makes everything before now the past of which nothing is known.
func (l *leaseLog) forget() { l.base, l.ids = l.head()+1, nil }

// since returns the ids that changed after seq; false if that is not known.
func (l *leaseLog) since(seq uint64) ([]int64, bool) {
	if seq < l.base || seq > l.head() {
		return nil, false
	}
	return l.ids[seq-l.base:], true
}

// leaseStep is a lease that is to change: to a TTL, or away (0).
type leaseStep struct {
	id, ttl int64
}

// compare returns what has to change for c to hold.
func (l *lessor) compare(c heliograph.LeaseChange) ([]leaseStep, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	granted := l.cur.granted
	var steps []leaseStep
	total := len(granted)
	for _, p := range c.Put {
		if p.ID == int64(lease.NoLease) || p.TTL < 1 || p.TTL > heliograph.MaxLeaseTTL {
			return nil, fmt.Errorf("lease %x with a TTL of %d seconds: there is no such lease", p.ID, p.TTL)
		}
		g, known := granted[p.ID]
		if !known {
			total++
		}
		if !known || g.doomed || g.ttl != p.TTL {
			steps = append(steps, leaseStep{p.ID, p.TTL})
		}
	}
	if total > heliograph.MaxLeases {
		return nil, fmt.Errorf("more than %d leases", heliograph.MaxLeases)
	}
	gone := c.Removed
	if c.Reset {
		gone = nil
		left := make(map[int64]struct{}, len(c.Put))
		for _, p := range c.Put {
			left[p.ID] = struct{}{}
		}
		for id := range granted {
			if _, ok := left[id]; !ok {
				gone = append(gone, id)
			}
		}
	}
	for _, id := range gone {
		if g, known := granted[id]; known && !g.doomed {
			steps = append(steps, leaseStep{id: id})
		}
	}
	return steps, nil
}

// take makes the steps. It returns those that the file has to follow: a lease
// that keys are attached to stays there.
func (l *lessor) take(steps []leaseStep) []leaseStep {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]leaseStep, 0, len(steps))
	for _, st := range steps {
		g, known := l.cur.granted[st.id]
		switch {
		case st.ttl > 0 && known && g.ttl == st.ttl:
			l.cur.granted[st.id] = grant{ttl: st.ttl} // no longer doomed
			continue
		case st.ttl > 0:
			l.cur.granted[st.id] = grant{ttl: st.ttl}
		case len(l.cur.byLease[lease.LeaseID(st.id)]) > 0:
			l.cur.granted[st.id] = grant{ttl: g.ttl, doomed: true}
			continue
		default:
			delete(l.cur.granted, st.id)
		}
		l.log.add(st.id)
		out = append(out, st)
	}
	return out
}

// freeLocked drops a lease that the source has dropped and that has lost its last
// key.
func (l *lessor) freeLocked(a *attachments, id lease.LeaseID) {
	if g := a.granted[int64(id)]; g.doomed && a == l.cur {
		delete(a.granted, int64(id))
		l.log.add(int64(id))
		l.freed = append(l.freed, leaseStep{id: int64(id)})
	}
}

// takeFreed returns the leases that were dropped with their last key since the
// last call.
func (l *lessor) takeFreed() []leaseStep {
	l.mu.Lock()
	defer l.mu.Unlock()
	freed := l.freed
	l.freed = nil
	return freed
}

// since is [Store.LeasesSince].
func (l *lessor) since(seq uint64) (heliograph.LeaseChange, uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	granted, next := l.cur.granted, l.log.head()
	ids, known := l.log.since(seq)
	if !known {
		c := heliograph.LeaseChange{Reset: true, Put: make([]heliograph.Lease, 0, len(granted))}
		for _, id := range slices.Sorted(maps.Keys(granted)) {
			c.Put = append(c.Put, heliograph.Lease{ID: id, TTL: granted[id].ttl})
		}
		return c, next
	}
	var c heliograph.LeaseChange
	seen := make(map[int64]struct{}, len(ids))
	for _, id := range ids {
		if _, twice := seen[id]; twice {
			continue
		}
		seen[id] = struct{}{}
		if g, ok := granted[id]; ok {
			c.Put = append(c.Put, heliograph.Lease{ID: id, TTL: g.ttl})
		} else {
			c.Removed = append(c.Removed, id)
		}
	}
	return c, next
}

var errReplaced = errors.New("the contents were replaced meanwhile")

// ApplyLeases takes a change of the source's leases, as heliograph.Replica says.
// TTLs stand in etcd's own bucket, so that an etcd which is started on the file
// has them. A change that cannot be is an error, and nothing of it is taken.
func (s *Store) ApplyLeases(change heliograph.LeaseChange) error {
	c := s.cur.Load()
	if c == nil {
		return heliograph.ErrNotReady
	}
	steps, err := s.lessor.compare(change)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(steps, leaseChunk) {
		if err := s.changeLeases(c, chunk); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) changeLeases(c *contents, steps []leaseStep) error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return heliograph.ErrClosed
	case s.cur.Load() != c:
		return errReplaced
	}
	s.writeLeases(c, s.lessor.take(steps))
	return nil
}

// writeLeases makes the file follow; durable at the next commit. A crash may take
// it back, also when the revisions beside it stay: the source tells again.
func (s *Store) writeLeases(c *contents, steps []leaseStep) {
	if len(steps) == 0 {
		return
	}
	tx := c.be.BatchTx()
	tx.LockOutsideApply()
	putLeases(tx, steps)
	tx.Unlock()
	c.loose.Add(1)
}

func putLeases(tx backend.BatchTx, steps []leaseStep) {
	schema.UnsafeCreateLeaseBucket(tx)
	for _, st := range steps {
		if st.ttl > 0 {
			schema.MustUnsafePutLease(tx, &leasepb.Lease{ID: st.id, TTL: st.ttl})
		} else {
			schema.UnsafeDeleteLease(tx, &leasepb.Lease{ID: st.id})
		}
	}
}

// LeasesSince returns how the leases of known TTL have changed since a call that
// returned seq as next; 0, or a seq from too long ago, gets them all. Any number
// of callers may follow so, and none costs the store a queue.
func (s *Store) LeasesSince(seq uint64) (change heliograph.LeaseChange, next uint64) {
	return s.lessor.since(seq)
}

// Leases returns all leases in ascending order of id, without their keys: those
// that the source has told of, and those that keys are attached to.
func (s *Store) Leases() []Lease { return s.lessor.list() }

// Lease returns one lease with its keys; false if there is none.
func (s *Store) Lease(id int64) (Lease, bool) { return s.lessor.lease(id) }
