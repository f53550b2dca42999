package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

func TestConfig(t *testing.T) {
	for want, cfg := range map[string]store.Config{
		"Dir":            {},
		"Database":       {Dir: t.TempDir(), Database: "../x"},
		"History":        {Dir: t.TempDir(), History: -1},
		"CommitInterval": {Dir: t.TempDir(), CommitInterval: -1},
		"MinFree":        {Dir: t.TempDir(), MinFree: -1},
	} {
		if st, err := store.Open(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, %v; want an error that names %s", st, err, want)
		}
	}
}

// A file that cannot be used is an error that says what to do, never a panic.
func TestOpenDamaged(t *testing.T) {
	src := newSource(t)
	for range 1000 {
		src.put("a", strings.Repeat("v", 300))
	}
	dir := t.TempDir()
	st := openStore(t, store.Config{Dir: dir})
	mustReceive(t, st, src.snapshot())
	closeStore(t, st)
	good, err := os.ReadFile(filepath.Join(dir, "default.db"))
	if err != nil {
		t.Fatal(err)
	}
	own := func(f func(b *bolt.Bucket) error) []byte {
		return rewrite(t, good, func(tx *bolt.Tx) error { return f(tx.Bucket([]byte("heliograph"))) })
	}
	scribbled := bytes.Clone(good)
	for i := 3 * 4096; i < len(scribbled); i++ {
		scribbled[i] = 0xa5
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":          {nil, ""},
		"no database":    {bytes.Repeat([]byte("x"), 10_000), "invalid"},
		"cut off":        {good[:len(good)/2], "cut off"},
		"scribbled on":   {scribbled, ""},
		"plain etcd":     {src.snapshot(), "where its data comes from"},
		"future format":  {own(func(b *bolt.Bucket) error { return b.Put([]byte("format"), []byte("2")) }), "format"},
		"bad origin":     {own(func(b *bolt.Bucket) error { return b.Put([]byte("origin"), []byte("?")) }), "origin"},
		"bad list":       {own(func(b *bolt.Bucket) error { return b.Put([]byte("compactions"), []byte("?")) }), "pending compactions"},
		"unordered list": {own(func(b *bolt.Bucket) error { return b.Put([]byte("compactions"), make([]byte, 16)) }), "not in order"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "default.db"), tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(store.Config{Dir: dir})
		if err == nil {
			t.Errorf("%s: opened at %d", name, st.Applied())
			closeStore(t, st)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "start over from a new snapshot") {
			t.Errorf("%s: %v", name, err)
		}
		left, err := os.ReadFile(filepath.Join(dir, "default.db"))
		if err != nil || !bytes.Equal(left, tt.data) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func TestOpenLocked(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t, store.Config{Dir: dir})
	_, err := store.Open(store.Config{Dir: dir, LockTimeout: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second open: %v", err)
	}
	newStore(t, store.Config{Dir: dir, Database: "other"})
	closeStore(t, st)
	newStore(t, store.Config{Dir: dir})
}

func TestEmpty(t *testing.T) {
	st := newStore(t, store.Config{})
	if st.Applied() != 0 || st.Durable() != 0 || st.Compacted() != 0 || st.Generation() != 0 || !st.Origin().IsZero() {
		t.Error("an empty store claims to hold something")
	}
	if _, err := st.KV(); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("KV: %v", err)
	}
	if _, err := st.HashKV(t.Context(), 0); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("HashKV: %v", err)
	}
	if _, err := st.History(1, 1, nil); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("History: %v", err)
	}
	if rev, err := st.Commit(); rev != 0 || err != nil {
		t.Errorf("Commit: %d, %v", rev, err)
	}
	st.Compact(5)
}

func TestClosed(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := openStore(t, store.Config{Dir: dir, CommitInterval: time.Hour})
	mustReceive(t, st, src.snapshot())
	src.put("a", "b")
	follow(t, st, src)
	snap, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := st.ReceiveSnapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	changed := st.Changed()
	closeStore(t, st)
	closeStore(t, st)
	<-changed
	for name, err := range map[string]error{
		"Apply":      st.Apply(src.batch(2)),
		"WriteChunk": r.WriteChunk(0, []byte("x")),
		"Commit":     func() error { _, err := st.Commit(); return err }(),
		"KV":         func() error { _, err := st.KV(); return err }(),
		"HashKV":     func() error { _, err := st.HashKV(t.Context(), 0); return err }(),
		"History":    func() error { _, err := st.History(2, 1, nil); return err }(),
		"Snapshot":   func() error { _, err := st.Snapshot(t.Context()); return err }(),
		"Receive":    func() error { _, err := st.ReceiveSnapshot(0); return err }(),
	} {
		if !errors.Is(err, heliograph.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	st.Compact(2)
	readAll(t, snap)
	snap.Release()
	if got := strings.Join(files(t, dir), " "); got != "default.db default.lock" {
		t.Errorf("files after close: %s", got)
	}
	st = openStore(t, store.Config{Dir: dir})
	defer closeStore(t, st)
	mustEqual(t, st, src)
}

// Applied moves at once, durable with a commit; each wakes who waits.
func TestDurable(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{CommitInterval: time.Hour})
	mustReceive(t, st, src.snapshot())
	changed := st.Changed()
	src.put("a", "b")
	follow(t, st, src)
	<-changed
	if st.Applied() != 2 || st.Durable() != 1 {
		t.Errorf("applied %d, durable %d", st.Applied(), st.Durable())
	}
	changed = st.Changed()
	if rev, err := st.Commit(); rev != 2 || err != nil {
		t.Errorf("commit: %d, %v", rev, err)
	}
	<-changed
	if st.Durable() != 2 {
		t.Errorf("durable %d", st.Durable())
	}

	byItself := newStore(t, store.Config{CommitInterval: time.Millisecond})
	mustReceive(t, byItself, src.snapshot())
	src.put("a", "c")
	follow(t, byItself, src)
	waitFor(t, byItself, "commit", func() bool { return byItself.Durable() == 3 })
}

// Large batches do not wait for the committer: memory is bounded.
func TestDirtyBytesAreBounded(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{CommitInterval: time.Hour})
	mustReceive(t, st, src.snapshot())
	for i := range 20 {
		src.put(fmt.Sprint(i), strings.Repeat("v", 3<<20))
	}
	follow(t, st, src)
	if behind := st.Applied() - st.Durable(); behind > 11 {
		t.Errorf("%d revisions of 3 MiB are not committed", behind)
	}
}

// Too little space stops what writes and nothing else. FAULTS 20.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	src.put("a", "b")
	full := openStore(t, store.Config{Dir: dir, MinFree: math.MaxInt64})
	if _, err := full.ReceiveSnapshot(1000); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("receive: %v", err)
	}
	closeStore(t, full)
	st := openStore(t, store.Config{Dir: dir})
	mustReceive(t, st, src.snapshot())
	closeStore(t, st)

	full = openStore(t, store.Config{Dir: dir, MinFree: math.MaxInt64})
	src.put("a", "c")
	if err := full.Apply(src.batch(3)); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("apply: %v", err)
	}
	if _, err := full.Snapshot(t.Context()); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("snapshot: %v", err)
	}
	if got := history(t, full, 2, 1000); len(got) != 1 {
		t.Errorf("history has %d revisions", len(got))
	}
	closeStore(t, full)
	if got := strings.Join(files(t, dir), " "); got != "default.db default.lock" {
		t.Errorf("files: %s", got)
	}
	st = openStore(t, store.Config{Dir: dir})
	defer closeStore(t, st)
	follow(t, st, src)
	mustEqual(t, st, src)
}

func TestViewIsReadOnly(t *testing.T) {
	src := newSource(t)
	src.put("a", "b")
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	kv, err := st.KV()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(){
		"Put":         func() { kv.Put([]byte("a"), nil, 0) },
		"DeleteRange": func() { kv.DeleteRange([]byte("a"), nil) },
		"Write":       func() { kv.Write(traceutil.TODO()) },
		"Compact":     func() { _, _ = kv.Compact(traceutil.TODO(), 1) },
		"Commit":      func() { kv.Commit() },
		"Restore":     func() { _ = kv.Restore(nil) },
		"Close":       func() { _ = kv.Close() },
		"Store":       func() { kv.HashStorage().Store(mvcc.KeyValueHash{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s did not panic", name)
				}
			}()
			f()
		}()
	}
	r, err := kv.Range(t.Context(), []byte("a"), nil, mvcc.RangeOptions{})
	if err != nil || len(r.KVs) != 1 || string(r.KVs[0].Value) != "b" {
		t.Errorf("range: %+v, %v", r, err)
	}
	h, _, err := kv.HashStorage().HashByRev(0)
	if want := src.hash(0); err != nil || h.Hash != want.Hash {
		t.Errorf("hash: %+v, %v", h, err)
	}
}

// Every metric moves, and goes with the store.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	src := newSource(t)
	st := openStore(t, store.Config{Dir: t.TempDir(), Metrics: reg, CommitInterval: time.Hour})
	src.put("a", "b")
	mustReceive(t, st, src.snapshot())
	src.put("a", "c")
	src.put("a", "d")
	follow(t, st, src)
	_ = st.Apply(heliograph.Batch{Rev: 5})
	if _, err := st.Commit(); err != nil {
		t.Fatal(err)
	}
	st.Compact(3)
	waitFor(t, st, "compaction", func() bool { return st.Compacted() == 3 })
	snap, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap.Release()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		m := f.Metric[0]
		if l := m.Label; len(l) != 1 || l[0].GetName() != "database" || l[0].GetValue() != "default" {
			t.Errorf("%s has labels %v", f.GetName(), l)
		}
		got[strings.TrimPrefix(f.GetName(), "heliograph_store_")] =
			m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	for name, want := range map[string]float64{
		"applied_records_total": 2, "divergences_total": 1, "compactions_total": 1,
		"snapshots_received_total": 1, "snapshots_spooled_total": 1, "commit_seconds": 1,
		"applied_revision": 4, "durable_revision": 4, "compact_revision": 3,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for _, name := range []string{"applied_bytes_total", "size_bytes", "size_in_use_bytes"} {
		if got[name] <= 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	closeStore(t, st)
	if families, _ := reg.Gather(); len(families) != 0 {
		t.Errorf("%d metrics are left after Close", len(families))
	}
}

// No key and no value of a user reaches the log, at any level.
func TestLogHoldsNoData(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug}))
	src := newSource(t)
	src.put("secret-key", "secret-value")
	st := openStore(t, store.Config{Dir: t.TempDir(), Log: log})
	mustReceive(t, st, src.snapshot())
	src.put("secret-key", "secret-value")
	src.del("secret-key")
	follow(t, st, src)
	st.Compact(3)
	waitFor(t, st, "compaction", func() bool { return st.Compacted() == 3 })
	closeStore(t, st)
	if buf.Len() == 0 || strings.Contains(buf.String(), "secret") {
		t.Errorf("log: %s", buf.String())
	}
}
