package store

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
)

// Lease is a lease of the source that keys are attached to.
type Lease struct {
	ID   int64
	TTL  int64    // granted, in seconds; 0 if the snapshot did not hold it
	Keys []string // in ascending order
}

// attachments says which keys hang on which lease.
type attachments struct {
	byLease map[lease.LeaseID]map[string]struct{}
	byKey   map[string]lease.LeaseID
	ttl     map[int64]int64 // of the leases in the snapshot, in seconds
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
}

var _ lease.Lessor = (*lessor)(nil)

var errReplicaLessor = errors.New("leases of a replica belong to its source")

func newAttachments(ttl map[int64]int64) *attachments {
	return &attachments{
		byLease: make(map[lease.LeaseID]map[string]struct{}),
		byKey:   make(map[string]lease.LeaseID),
		ttl:     ttl,
	}
}

func newLessor() *lessor { return &lessor{cur: newAttachments(nil)} }

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
	keys, ok := l.cur.byLease[lease.LeaseID(id)]
	if !ok {
		return Lease{}, false
	}
	return Lease{ID: id, TTL: l.cur.ttl[id], Keys: slices.Sorted(maps.Keys(keys))}, true
}

func (l *lessor) list() []Lease {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]Lease, 0, len(l.cur.byLease))
	for _, id := range slices.Sorted(maps.Keys(l.cur.byLease)) {
		out = append(out, Lease{ID: int64(id), TTL: l.cur.ttl[int64(id)]})
	}
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

// Leases returns the leases that keys are attached to, in ascending order of id,
// without their keys. A lease without keys cannot be told from a revoked one
// and is not listed.
func (s *Store) Leases() []Lease { return s.lessor.list() }

// Lease returns one lease with its keys; false if no key is attached to it.
func (s *Store) Lease(id int64) (Lease, bool) { return s.lessor.lease(id) }
