package node

import (
	"context"

	"github.com/heliograph/heliograph/store"
)

// readReplica is a store as the etcd API wants it.
type readReplica struct{ *store.Store }

// HashKV implements [readapi.Replica].
func (r readReplica) HashKV(ctx context.Context, rev int64) (hash uint32, compactRev, currentRev int64, err error) {
	h, err := r.Store.HashKV(ctx, rev)
	return h.Hash, h.CompactRevision, h.CurrentRevision, err
}

// Hash implements [readapi.Replica]. The scan cannot be interrupted.
func (r readReplica) Hash(ctx context.Context) (hash uint32, rev int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	return r.Store.Hash()
}

// Lease implements [readapi.Replica].
func (r readReplica) Lease(id int64) (grantedTTL int64, keys [][]byte, ok bool) {
	l, ok := r.Store.Lease(id)
	for _, key := range l.Keys {
		keys = append(keys, []byte(key))
	}
	return l.TTL, keys, ok
}

// Leases implements [readapi.Replica].
func (r readReplica) Leases() []int64 {
	list := r.Store.Leases()
	ids := make([]int64, len(list))
	for i, l := range list {
		ids[i] = l.ID
	}
	return ids
}
