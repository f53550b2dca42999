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
// that their revision has been compacted. After [Store.Reset] there is another
// view, and the old one answers with heliograph.ErrNotReady. The error is
// heliograph.ErrNotReady before the first snapshot. A view must not be used after
// Close.
func (s *Store) KV() (mvcc.WatchableKV, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, heliograph.ErrClosed
	}
	if s.kv == nil {
		return nil, heliograph.ErrNotReady
	}
	return readOnly{WatchableKV: s.kv, s: s, e: s.epoch}, nil
}

// readOnly lets the reading methods of MVCC through and no others, while its
// epoch lasts. It is a value, so that two views of one store are equal.
type readOnly struct {
	mvcc.WatchableKV
	s *Store
	e *epoch
}

// Range implements [mvcc.ReadView].
func (r readOnly) Range(ctx context.Context, key, end []byte, ro mvcc.RangeOptions) (*mvcc.RangeResult, error) {
	if !r.e.enter() {
		return nil, heliograph.ErrNotReady
	}
	defer r.e.leave()
	return r.WatchableKV.Range(ctx, key, end, ro)
}

// Rev implements [mvcc.ReadView]. It is 0 when the epoch has ended.
func (r readOnly) Rev() int64 {
	if !r.e.enter() {
		return 0
	}
	defer r.e.leave()
	return r.WatchableKV.Rev()
}

// FirstRev implements [mvcc.ReadView].
func (r readOnly) FirstRev() int64 {
	if !r.e.enter() {
		return 0
	}
	defer r.e.leave()
	return r.WatchableKV.FirstRev()
}

// Read implements [mvcc.KV].
func (r readOnly) Read(mode mvcc.ReadTxMode, trace *traceutil.Trace) mvcc.TxnRead {
	if !r.e.enter() {
		return endedRead{}
	}
	return &epochRead{TxnRead: r.WatchableKV.Read(mode, trace), e: r.e}
}

// epochRead is a read transaction that keeps its epoch's store open.
type epochRead struct {
	mvcc.TxnRead
	e *epoch
}

// End implements [mvcc.TxnRead].
func (r *epochRead) End() {
	r.TxnRead.End()
	r.e.leave()
}

// endedRead is a read transaction of an epoch that has ended.
type endedRead struct{}

func (endedRead) FirstRev() int64 { return 0 }
func (endedRead) Rev() int64      { return 0 }
func (endedRead) End()            {}
func (endedRead) Range(context.Context, []byte, []byte, mvcc.RangeOptions) (*mvcc.RangeResult, error) {
	return nil, heliograph.ErrNotReady
}

// NewWatchStream implements [mvcc.Watchable].
func (r readOnly) NewWatchStream() mvcc.WatchStream {
	if !r.e.enter() {
		return make(endedStream)
	}
	return &epochStream{WatchStream: r.WatchableKV.NewWatchStream(), e: r.e}
}

// epochStream is a watch stream that keeps its epoch's store open.
type epochStream struct {
	mvcc.WatchStream
	e *epoch
}

// Close implements [mvcc.WatchStream]; it is called once.
func (w *epochStream) Close() {
	w.WatchStream.Close()
	w.e.leave()
}

// endedStream is a watch stream of an epoch that has ended. Nothing comes.
type endedStream chan mvcc.WatchResponse

func (endedStream) Watch(context.Context, mvcc.WatchID, []byte, []byte, int64, ...mvcc.FilterFunc) (mvcc.WatchID, error) {
	return 0, heliograph.ErrNotReady
}
func (w endedStream) Chan() <-chan mvcc.WatchResponse { return w }
func (endedStream) RequestProgress(mvcc.WatchID)      {}
func (endedStream) RequestProgressAll() bool          { return false }
func (endedStream) Cancel(mvcc.WatchID) error         { return mvcc.ErrWatcherNotExist }
func (w endedStream) Close()                          { close(w) }
func (endedStream) Rev() int64                        { return 0 }

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
	err = v.s.hash(context.Background(), func(c *contents) error {
		if c.epoch != v.e {
			return heliograph.ErrNotReady
		}
		h, current, err = c.epoch.kv.HashStorage().HashByRev(rev)
		return err
	})
	return h, current, err
}

func (v hashView) Store(mvcc.KeyValueHash)     { panic(writeToReplica) }
func (v hashView) Hashes() []mvcc.KeyValueHash { return v.WatchableKV.HashStorage().Hashes() }
