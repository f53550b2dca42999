package readapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
)

var origin = heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 0xcafe}

// replica is a readapi.Replica on an mvcc store of its own.
type replica struct {
	tb     testing.TB
	origin heliograph.Origin

	mu      sync.Mutex
	be      backend.Backend
	kv      mvcc.WatchableKV // nil before the first snapshot
	changed chan struct{}
	applied int64
	leases  map[int64]leased
}

type leased struct {
	ttl  int64
	keys []string
}

// emptyReplica returns a replica that holds nothing yet.
func emptyReplica(tb testing.TB) *replica {
	r := &replica{tb: tb, origin: origin, changed: make(chan struct{}), leases: map[int64]leased{}}
	tb.Cleanup(func() {
		if r.kv != nil {
			r.kv.Close()
			r.be.Close()
		}
	})
	return r
}

// newReplica returns a replica at revision 1.
func newReplica(tb testing.TB) *replica {
	r := emptyReplica(tb)
	r.open(filepath.Join(tb.TempDir(), "db"))
	return r
}

// replicaOf returns a replica of what a snapshot file of etcd holds.
func replicaOf(tb testing.TB, snapshot string) *replica {
	tb.Helper()
	b, err := os.ReadFile(snapshot)
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(tb.TempDir(), "db")
	if err := os.WriteFile(path, b[:len(b)/512*512], 0o600); err != nil { // without the SHA-256
		tb.Fatal(err)
	}
	r := emptyReplica(tb)
	r.open(path)
	return r
}

// open makes the file's contents the replica's, as a snapshot does.
func (r *replica) open(path string) {
	be := backend.New(backend.BackendConfig{
		Path: path, BatchInterval: 10 * time.Millisecond, BatchLimit: 10_000, MmapSize: 1 << 30, Logger: zap.NewNop(),
	})
	kv := mvcc.New(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
	r.mu.Lock()
	oldKV, oldBE := r.kv, r.be
	r.be, r.kv = be, kv
	r.changeLocked(kv.Rev())
	r.mu.Unlock()
	if oldKV != nil {
		r.tb.Cleanup(func() { oldKV.Close(); oldBE.Close() }) // watches may still be on it
	}
}

func (r *replica) changeLocked(applied int64) {
	r.applied = applied
	close(r.changed)
	r.changed = make(chan struct{})
}

// apply makes one revision of what change does.
func (r *replica) apply(change func(mvcc.TxnWrite)) int64 {
	kv, err := r.KV()
	if err != nil {
		panic(err)
	}
	tx := kv.Write(traceutil.TODO())
	change(tx)
	tx.End()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changeLocked(kv.Rev())
	return r.applied
}

// put makes one revision of the pairs of keys and values.
func (r *replica) put(pairs ...string) int64 {
	return r.apply(func(tx mvcc.TxnWrite) {
		for i := 0; i < len(pairs); i += 2 {
			tx.Put([]byte(pairs[i]), []byte(pairs[i+1]), lease.NoLease)
		}
	})
}

func (r *replica) delete(key string) int64 {
	return r.apply(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte(key), nil) })
}

func (r *replica) compact(rev int64) {
	r.tb.Helper()
	kv, _ := r.KV()
	done, err := kv.Compact(traceutil.TODO(), rev)
	if err != nil {
		r.tb.Fatal(err)
	}
	<-done
}

func (r *replica) KV() (mvcc.WatchableKV, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kv == nil {
		return nil, fmt.Errorf("replica: %w", heliograph.ErrNotReady)
	}
	return r.kv, nil
}

func (r *replica) Origin() heliograph.Origin { return r.origin }

func (r *replica) Applied() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied
}

func (r *replica) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *replica) Size() (total, inUse int64) { return r.be.Size(), r.be.SizeInUse() }

func (r *replica) HashKV(_ context.Context, rev int64) (uint32, int64, int64, error) {
	kv, err := r.KV()
	if err != nil {
		return 0, 0, 0, err
	}
	h, current, err := kv.HashStorage().HashByRev(rev)
	return h.Hash, h.CompactRevision, current, err
}

func (r *replica) Hash(context.Context) (uint32, int64, error) {
	kv, err := r.KV()
	if err != nil {
		return 0, 0, err
	}
	return kv.HashStorage().Hash()
}

func (r *replica) Snapshot(context.Context) (heliograph.Snapshot, error) {
	r.be.ForceCommit()
	s := r.be.Snapshot()
	defer s.Close()
	var buf bytes.Buffer
	if _, err := s.WriteTo(&buf); err != nil {
		return nil, err
	}
	return &snapshot{Reader: bytes.NewReader(buf.Bytes()), rev: r.Applied(), sum: sha256.Sum256(buf.Bytes())}, nil
}

func (r *replica) Lease(id int64) (int64, [][]byte, bool) {
	l, ok := r.leases[id]
	var keys [][]byte
	for _, k := range l.keys {
		keys = append(keys, []byte(k))
	}
	return l.ttl, keys, ok
}

func (r *replica) Leases() []int64 { return slices.Collect(maps.Keys(r.leases)) }

// snapshot is a copy in memory.
type snapshot struct {
	*bytes.Reader
	rev      int64
	sum      [32]byte
	released chan struct{} // closed by Release, if not nil
}

func (s *snapshot) Rev() int64       { return s.rev }
func (s *snapshot) SHA256() [32]byte { return s.sum }
func (s *snapshot) Release() {
	if s.released != nil {
		close(s.released)
	}
}

var _ io.ReaderAt = (*snapshot)(nil)
