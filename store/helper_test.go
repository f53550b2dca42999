package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDirEnv); dir != "" {
		runChild(dir)
		return
	}
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = flag.Set("rapid.checks", "15") // every check waits for many fsyncs
	}
	goleak.VerifyTestMain(m)
}

var origin = heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 0xabcdef}

// fataler is what helpers need of testing.TB and rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// source is an etcd's storage: the truth that a store is compared with.
type source struct {
	t      fataler
	be     backend.Backend
	kv     mvcc.WatchableKV
	lessor *lease.FakeLessor
}

func openSource(t fataler, dir string) *source {
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path = filepath.Join(dir, "source.db")
	cfg.UnsafeNoFsync = true
	be := backend.New(cfg)
	tx := be.BatchTx()
	tx.LockOutsideApply()
	for _, b := range schema.AllBuckets {
		tx.UnsafeCreateBucket(b)
	}
	tx.Unlock()
	s := &source{t: t, be: be, lessor: &lease.FakeLessor{LeaseSet: map[lease.LeaseID]struct{}{}}}
	s.kv = mvcc.New(zap.NewNop(), be, s.lessor, mvcc.StoreConfig{})
	return s
}

func newSource(t *testing.T) *source {
	t.Helper()
	s := openSource(t, t.TempDir())
	t.Cleanup(s.close)
	return s
}

func (s *source) close() {
	s.t.Helper()
	if err := errors.Join(s.kv.Close(), s.be.Close()); err != nil {
		s.t.Fatalf("close source: %v", err)
	}
}

// do runs one transaction and returns the revision after it.
func (s *source) do(f func(tx mvcc.TxnWrite)) int64 {
	tx := s.kv.Write(traceutil.TODO())
	f(tx)
	tx.End()
	return s.kv.Rev()
}

func (s *source) put(key, value string) int64 {
	return s.do(func(tx mvcc.TxnWrite) { tx.Put([]byte(key), []byte(value), 0) })
}

func (s *source) del(key string) int64 {
	return s.do(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte(key), nil) })
}

func (s *source) compact(rev int64) {
	s.t.Helper()
	done, err := s.kv.Compact(traceutil.TODO(), rev)
	if err != nil {
		s.t.Fatalf("compact source at %d: %v", rev, err)
	}
	<-done
}

func (s *source) lease(id, ttl int64) {
	tx := s.be.BatchTx()
	tx.LockOutsideApply()
	schema.MustUnsafePutLease(tx, &leasepb.Lease{ID: id, TTL: ttl})
	tx.Unlock()
}

// batch reads one revision from the source's file.
func (s *source) batch(rev int64) heliograph.Batch {
	s.t.Helper()
	b := heliograph.Batch{Rev: rev}
	tx := s.be.ReadTx()
	tx.RLock()
	defer tx.RUnlock()
	keys, values := tx.UnsafeRange(schema.Key, revKey(rev, 0, false), revKey(rev+1, 0, false), math.MaxInt64)
	for i := range keys {
		b.Records = append(b.Records, heliograph.Record{Key: bytes.Clone(keys[i]), Value: bytes.Clone(values[i])})
	}
	if len(b.Records) == 0 {
		s.t.Fatalf("source has no records of revision %d", rev)
	}
	return b
}

func (s *source) snapshot() []byte {
	s.t.Helper()
	snap := s.be.Snapshot()
	var buf bytes.Buffer
	_, err := snap.WriteTo(&buf)
	if err := errors.Join(err, snap.Close()); err != nil {
		s.t.Fatalf("snapshot source: %v", err)
	}
	return buf.Bytes()
}

func (s *source) hash(rev int64) store.HashKV {
	s.t.Helper()
	h, current, err := s.kv.HashStorage().HashByRev(rev)
	if err != nil {
		s.t.Fatalf("hash source at %d: %v", rev, err)
	}
	return store.HashKV{Hash: h.Hash, HashRevision: h.Revision, CompactRevision: h.CompactRevision, CurrentRevision: current}
}

func openStore(t fataler, cfg store.Config) *store.Store {
	t.Helper()
	st, err := store.Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return st
}

// newStore opens a store that is closed with the test.
func newStore(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	st := openStore(t, cfg)
	t.Cleanup(func() { closeStore(t, st) })
	return st
}

func closeStore(t fataler, st *store.Store) {
	t.Helper()
	if err := st.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// receive hands data to st and returns what Commit returned.
func receive(st *store.Store, data []byte, from heliograph.Origin) (int64, error) {
	r, err := st.ReceiveSnapshot(int64(len(data)))
	if err != nil {
		return 0, err
	}
	for off := 0; off < len(data); off += 100_000 {
		if err := r.WriteChunk(int64(off), data[off:min(off+100_000, len(data))]); err != nil {
			return 0, errors.Join(err, r.Abort())
		}
	}
	return r.Commit(int64(len(data)), sha256.Sum256(data), from)
}

func mustReceive(t fataler, st *store.Store, data []byte) int64 {
	t.Helper()
	rev, err := receive(st, data, origin)
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return rev
}

// follow applies what the source has and the store has not.
func follow(t fataler, st *store.Store, src *source) {
	t.Helper()
	for rev := st.Applied() + 1; rev <= src.kv.Rev(); rev++ {
		if err := st.Apply(src.batch(rev)); err != nil {
			t.Fatalf("apply %d: %v", rev, err)
		}
	}
}

// mustEqual compares the hashes of source and store at the head.
func mustEqual(t fataler, st *store.Store, src *source) {
	t.Helper()
	want := src.hash(0)
	got, err := st.HashKV(context.Background(), 0)
	if err != nil {
		t.Fatalf("hash: %v", err)
	}
	if got != want {
		t.Fatalf("hash of the store is %+v, of the source %+v", got, want)
	}
}

// history reads everything from revision from on, at most maxBytes at a time.
func history(t fataler, st *store.Store, from int64, maxBytes int) []heliograph.Batch {
	t.Helper()
	var out []heliograph.Batch
	for {
		before := len(out)
		last, err := st.History(from, maxBytes, func(k, v []byte) error {
			rk, err := heliograph.ParseRevisionKey(k)
			if err != nil {
				return err
			}
			if n := len(out); n == before || out[n-1].Rev != rk.Main {
				out = append(out, heliograph.Batch{Rev: rk.Main})
			}
			b := &out[len(out)-1]
			b.Records = append(b.Records, heliograph.Record{Key: bytes.Clone(k), Value: bytes.Clone(v)})
			return nil
		})
		if err != nil {
			t.Fatalf("history from %d: %v", from, err)
		}
		if last == from-1 {
			return out
		}
		if got := out[len(out)-1].Rev; got != last {
			t.Fatalf("history from %d visited up to %d but returned %d", from, got, last)
		}
		from = last + 1
	}
}

// waitFor waits until cond holds, looking whenever the store changes.
func waitFor(t fataler, st *store.Store, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := st.Changed()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func revKey(main, sub int64, del bool) []byte {
	return heliograph.RevisionKey{Main: main, Sub: sub, Delete: del}.Append(nil)
}

func marshal(t fataler, kv *mvccpb.KeyValue) []byte {
	t.Helper()
	b, err := proto.Marshal(kv)
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	return b
}

// files returns what is in dir, folders excluded.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
