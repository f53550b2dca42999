package store

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
)

// Lease is a lease of the source.
type Lease struct {
	ID   int64
	TTL  int64    // granted, in seconds; 0 if the source has not told it yet
	Keys []string // in ascending order
}

// attachments says which leases there are and which keys hang on them. Those
// that were granted and those with keys overlap, and neither holds the other.
type attachments struct {
	byLease map[lease.LeaseID]map[string]struct{}
	byKey   map[string]lease.LeaseID
	granted map[int64]grant // by id
}

// lessor keeps the leases of an exact replica. It attaches a key to any lease,
// because the source knew that lease, and expires nothing, because the source
// will say so. The writes of [lease.Lessor] are refused.
type lessor struct {
	mu  sync.RWMutex
	cur *attachments
	// staged is what replaces cur, while MVCC restores from another file; nil
	// otherwise.
	staged *attachments
	log    leaseLog
	freed  []leaseStep // dropped with their last key, and still in the file
}

var _ lease.Lessor = (*lessor)(nil)

var errReplicaLessor = errors.New("leases of a replica belong to its source")

func newAttachments(ttl map[int64]int64) *attachments {
	a := &attachments{
		byLease: make(map[lease.LeaseID]map[string]struct{}),
		byKey:   make(map[string]lease.LeaseID),
		granted: make(map[int64]grant, len(ttl)),
	}
	for id, seconds := range ttl {
		a.granted[id] = grant{ttl: seconds}
	}
	return a
}

func newLessor() *lessor { return &lessor{cur: newAttachments(nil), log: leaseLog{base: 1}} }

// stage sends the attachments that follow to a new set, which readers do not
// see until publish.
func (l *lessor) stage(ttl map[int64]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.staged = newAttachments(ttl)
}

func (l *lessor) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur, l.staged = l.staged, nil
	l.log.forget()
	l.freed = nil
}

func (l *lessor) writableLocked() *attachments {
	if l.staged != nil {
		return l.staged
	}
	return l.cur
}

// Attach moves the items to the lease id.
func (l *lessor) Attach(id lease.LeaseID, items []lease.LeaseItem) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.writableLocked()
	keys := a.byLease[id]
	if keys == nil {
		keys = make(map[string]struct{})
		a.byLease[id] = keys
	}
	for _, it := range items {
		keys[it.Key] = struct{}{}
		a.byKey[it.Key] = id
	}
	return nil
}

// Detach removes the items from the lease id.
func (l *lessor) Detach(id lease.LeaseID, items []lease.LeaseItem) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.writableLocked()
	keys := a.byLease[id]
	for _, it := range items {
		delete(keys, it.Key)
		if a.byKey[it.Key] == id {
			delete(a.byKey, it.Key)
		}
	}
	if len(keys) == 0 {
		delete(a.byLease, id)
		l.freeLocked(a, id)
	}
	return nil
}

// GetLease returns the lease of the item, lease.NoLease if it has none.
func (l *lessor) GetLease(item lease.LeaseItem) lease.LeaseID {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.writableLocked().byKey[item.Key]
}

func (l *lessor) lease(id int64) (Lease, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	keys, attached := l.cur.byLease[lease.LeaseID(id)]
	g, granted := l.cur.granted[id]
	if !attached && !granted {
		return Lease{}, false
	}
	return Lease{ID: id, TTL: g.ttl, Keys: slices.Sorted(maps.Keys(keys))}, true
}

func (l *lessor) list() []Lease {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]Lease, 0, max(len(l.cur.byLease), len(l.cur.granted)))
	for id, g := range l.cur.granted {
		out = append(out, Lease{ID: id, TTL: g.ttl})
	}
	for id := range l.cur.byLease {
		if _, twice := l.cur.granted[int64(id)]; !twice {
			out = append(out, Lease{ID: int64(id)})
		}
	}
	slices.SortFunc(out, func(a, b Lease) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// The rest of [lease.Lessor] is what a primary does; MVCC calls none of it but
// SetRangeDeleter.

func (l *lessor) SetRangeDeleter(lease.RangeDeleter)               {}
func (l *lessor) SetCheckpointer(lease.Checkpointer)               {}
func (l *lessor) Grant(lease.LeaseID, int64) (*lease.Lease, error) { return nil, errReplicaLessor }
func (l *lessor) Revoke(lease.LeaseID) error                       { return errReplicaLessor }
func (l *lessor) Checkpoint(lease.LeaseID, int64) error            { return errReplicaLessor }
func (l *lessor) Promote(time.Duration)                            {}
func (l *lessor) Demote()                                          {}
func (l *lessor) Renew(lease.LeaseID) (int64, error)               { return 0, errReplicaLessor }
func (l *lessor) Lookup(lease.LeaseID) *lease.Lease                { return nil }
func (l *lessor) Leases() []*lease.Lease                           { return nil }
func (l *lessor) ExpiredLeasesC() <-chan []*lease.Lease            { return nil }
func (l *lessor) Recover(backend.Backend, lease.RangeDeleter)      {}
func (l *lessor) Stop()                                            {}
