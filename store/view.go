package store

import (
	"context"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
)

// KV returns a view of the replica that reads and watches like etcd's own store.
// Its write methods panic. All views of a store are equal (==), also when a
// snapshot replaces the contents: their watchers go on without a gap or are told
// that their revision has been compacted. The error is heliograph.ErrNotReady
// before the first snapshot. A view must not be used after Close.
func (s *Store) KV() (mvcc.WatchableKV, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, heliograph.ErrClosed
	}
	if s.kv == nil {
		return nil, heliograph.ErrNotReady
	}
	return readOnly{WatchableKV: s.kv, s: s}, nil
}

// readOnly lets the reading methods of MVCC through and no others. It is a value,
// so that two views of one store are equal.
type readOnly struct {
	mvcc.WatchableKV
	s *Store
}

const writeToReplica = "store: write to a read-only replica"

func (readOnly) Put(_, _ []byte, _ lease.LeaseID) int64 { panic(writeToReplica) }
func (readOnly) DeleteRange(_, _ []byte) (int64, int64) { panic(writeToReplica) }
func (readOnly) Write(*traceutil.Trace) mvcc.TxnWrite   { panic(writeToReplica) }
func (readOnly) Commit()                                { panic(writeToReplica) }
func (readOnly) Restore(backend.Backend) error          { panic(writeToReplica) }
func (readOnly) Close() error                           { panic(writeToReplica) }
func (readOnly) Compact(*traceutil.Trace, int64) (<-chan struct{}, error) {
	panic(writeToReplica)
}

// HashStorage returns etcd's interface to the store's hashes.
func (r readOnly) HashStorage() mvcc.HashStorage { return hashView(r) }

type hashView readOnly

func (v hashView) Hash() (uint32, int64, error) { return v.s.Hash() }

func (v hashView) HashByRev(rev int64) (h mvcc.KeyValueHash, current int64, err error) {
	err = v.s.hash(context.Background(), func() error {
		h, current, err = v.WatchableKV.HashStorage().HashByRev(rev)
		return err
	})
	return h, current, err
}

func (v hashView) Store(mvcc.KeyValueHash)     { panic(writeToReplica) }
func (v hashView) Hashes() []mvcc.KeyValueHash { return v.WatchableKV.HashStorage().Hashes() }
