package store_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// Whatever is wrong with a snapshot, it is refused, nothing of it stays, and the
// contents go on as if it had never been.
func TestBadSnapshots(t *testing.T) {
	src := newSource(t)
	src.put("a", "b")
	old := src.snapshot()
	src.put("a", "c")
	good := src.snapshot()
	sum := sha256.Sum256(good)
	size := int64(len(good))
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	other := origin
	other.EtcdID++
	noBucket := rewrite(t, good, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("meta")) })
	badRecord := rewrite(t, good, func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("key")).Put(revKey(9, 0, false), []byte{0xff})
	})
	badKey := rewrite(t, good, func(tx *bolt.Tx) error { return tx.Bucket([]byte("key")).Put([]byte("short"), []byte{1}) })
	badMark := rewrite(t, good, func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("finishedCompactRev"), []byte("?"))
	})

	for _, tt := range []struct {
		name   string
		total  int64
		data   []byte
		size   int64
		sum    [32]byte
		origin heliograph.Origin
		want   string
	}{
		{"truncated", size, good[:size-512], size, sum, origin, "wrong size"},
		{"truncated, size to match", size, good[:size-512], size - 512, sha256.Sum256(good[:size-512]), origin, "wrong size"},
		{"truncated, nothing announced", 0, good[:size-512], size - 512, sha256.Sum256(good[:size-512]), origin, "cut off"},
		{"cut to one page", 0, good[:4096], 4096, sha256.Sum256(good[:4096]), origin, ""},
		{"flipped byte", size, flipped, size, sum, origin, "wrong SHA-256"},
		{"too long", size - 1, good, size, sum, origin, "longer than"},
		{"empty", 0, nil, 0, sha256.Sum256(nil), origin, ""},
		{"no database", 0, bytes.Repeat([]byte("x"), 100_000), 100_000, sha256.Sum256(bytes.Repeat([]byte("x"), 100_000)), origin, "invalid"},
		{"no meta bucket", 0, noBucket, int64(len(noBucket)), sha256.Sum256(noBucket), origin, "not an etcd database"},
		{"bad record", 0, badRecord, int64(len(badRecord)), sha256.Sum256(badRecord), origin, "not in the form"},
		{"bad revision key", 0, badKey, int64(len(badKey)), sha256.Sum256(badKey), origin, "revision key"},
		{"bad compaction mark", 0, badMark, int64(len(badMark)), sha256.Sum256(badMark), origin, "finishedCompactRev"},
		{"older", 0, old, int64(len(old)), sha256.Sum256(old), origin, "never steps back"},
		{"no origin", 0, good, size, sum, heliograph.Origin{}, "origin"},
		{"another origin", 0, good, size, sum, other, "diverged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			st := openStore(t, store.Config{Dir: dir})
			defer func() { closeStore(t, st) }()
			mustReceive(t, st, good)
			before := files(t, dir)

			r, err := st.ReceiveSnapshot(tt.total)
			if err != nil {
				t.Fatal(err)
			}
			if err = r.WriteChunk(0, tt.data); err == nil {
				_, err = r.Commit(tt.size, tt.sum, tt.origin)
			} else {
				err = errors.Join(err, r.Abort())
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
			if _, diverged := errors.AsType[*heliograph.DivergedError](err); diverged != (tt.name == "another origin") {
				t.Errorf("diverged is %v: %v", diverged, err)
			}
			if after := files(t, dir); !slices.Equal(after, before) {
				t.Errorf("files were %v and are %v", before, after)
			}
			if g := st.Generation(); g != 1 {
				t.Errorf("generation %d", g)
			}
			mustEqual(t, st, src)
			closeStore(t, st)
			st = openStore(t, store.Config{Dir: dir})
			mustEqual(t, st, src)
		})
	}
}

// rewrite returns data after f has changed it.
func rewrite(t *testing.T, data []byte, f func(tx *bolt.Tx) error) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestReceiverProtocol(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	src.put("a", "b")
	data := src.snapshot()
	st := newStore(t, store.Config{Dir: dir})
	if _, err := st.ReceiveSnapshot(-1); err == nil {
		t.Error("a negative total was accepted")
	}
	r, err := st.ReceiveSnapshot(int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.ReceiveSnapshot(0); err == nil {
		t.Error("two snapshots at a time")
	}
	info, err := os.Stat(filepath.Join(dir, "default.partial"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("partial file: %v, %v", info, err)
	}
	if err := r.WriteChunk(0, data[:1000]); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 999, 1001, -1} {
		if err := r.WriteChunk(off, data[1000:2000]); err == nil {
			t.Errorf("chunk at %d was accepted after 1000 bytes", off)
		}
	}
	if err := r.WriteChunk(1000, data[1000:]); err != nil {
		t.Fatalf("the right chunk after wrong ones: %v", err)
	}
	if rev, err := r.Commit(int64(len(data)), sha256.Sum256(data), origin); err != nil || rev != 2 {
		t.Fatalf("commit: %d, %v", rev, err)
	}
	if err := r.Abort(); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
	if err := r.WriteChunk(0, nil); !errors.Is(err, heliograph.ErrClosed) {
		t.Errorf("write after commit: %v", err)
	}
	if st.Applied() != 2 || st.Durable() != 2 || st.Origin() != origin || st.Generation() != 1 {
		t.Errorf("applied %d, durable %d, origin %v, generation %d", st.Applied(), st.Durable(), st.Origin(), st.Generation())
	}

	r, err = st.ReceiveSnapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WriteChunk(0, data[:1000]); err != nil {
		t.Fatal(err)
	}
	if err := r.Abort(); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"default.db", "default.lock"}) {
		t.Errorf("files after abort: %v", got)
	}
	mustEqual(t, st, src)
}

// The buckets of the source come along, our own says who received.
func TestSnapshotKeepsForeignBuckets(t *testing.T) {
	src := newSource(t)
	data := rewrite(t, src.snapshot(), func(tx *bolt.Tx) error {
		if err := tx.Bucket([]byte("members")).Put([]byte("8e9e05c52164694d"), []byte(`{"name":"m1"}`)); err != nil {
			return err
		}
		b, err := tx.CreateBucket([]byte("heliograph"))
		if err != nil {
			return err
		}
		return errors.Join(b.Put([]byte("origin"), []byte("elsewhere")), b.Put([]byte("stale"), []byte("x")))
	})
	dir := t.TempDir()
	st := openStore(t, store.Config{Dir: dir})
	mustReceive(t, st, data)
	closeStore(t, st)
	db, err := bolt.Open(filepath.Join(dir, "default.db"), 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket([]byte("members")).Get([]byte("8e9e05c52164694d")); string(v) != `{"name":"m1"}` {
			t.Errorf("members bucket holds %q", v)
		}
		b := tx.Bucket([]byte("heliograph"))
		if v := b.Get([]byte("origin")); string(v) != origin.String() || b.Get([]byte("stale")) != nil {
			t.Errorf("own bucket: origin %q, stale %q", v, b.Get([]byte("stale")))
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// A history with a hole, as a restore with bumped revisions leaves it, is served
// above the hole only.
func TestBumpedRevisions(t *testing.T) {
	src := newSource(t)
	for range 4 {
		src.put("a", "b")
	}
	data := rewrite(t, src.snapshot(), func(tx *bolt.Tx) error {
		for rev := int64(1000); rev < 1003; rev++ {
			for _, r := range generated(rev).Records {
				if err := tx.Bucket([]byte("key")).Put(r.Key, r.Value); err != nil {
					return err
				}
			}
		}
		return nil
	})
	st := newStore(t, store.Config{})
	if rev := mustReceive(t, st, data); rev != 1002 {
		t.Fatalf("revision %d", rev)
	}
	if st.Floor() != 999 || st.Compacted() != 0 {
		t.Errorf("floor %d, compacted %d", st.Floor(), st.Compacted())
	}
	if _, err := st.History(999, 100, nil); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("history inside the hole: %v", err)
	}
	if got := history(t, st, 1000, 1); len(got) != 3 {
		t.Errorf("history above the hole has %d revisions", len(got))
	}
}

// Watchers that were there before a snapshot replaced the contents get every
// event after theirs, or are told that it has been compacted.
func TestWatchersOverReplacement(t *testing.T) {
	for _, compact := range []bool{false, true} {
		src := newSource(t)
		st := newStore(t, store.Config{})
		src.put("a", "1")
		mustReceive(t, st, src.snapshot())
		kv, err := st.KV()
		if err != nil {
			t.Fatal(err)
		}
		ws := kv.NewWatchStream()
		if _, err := ws.Watch(t.Context(), 1, []byte("a"), nil, 3); err != nil {
			t.Fatal(err)
		}
		if _, err := ws.Watch(t.Context(), 2, []byte("a"), nil, 0); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			src.put("a", "2")
		}
		if compact {
			src.compact(8)
		}
		mustReceive(t, st, src.snapshot())
		src.put("a", "3")
		follow(t, st, src)
		if again, err := st.KV(); err != nil || again.Rev() != src.kv.Rev() || kv.Rev() != src.kv.Rev() {
			t.Errorf("the view did not go on: %v", err)
		}
		next := map[mvcc.WatchID]int64{1: 3, 2: 3}
		for len(next) > 0 {
			resp := <-ws.Chan()
			if resp.CompactRevision != 0 {
				if !compact || resp.CompactRevision != 8 {
					t.Fatalf("compacted at %d", resp.CompactRevision)
				}
				delete(next, resp.WatchID)
				continue
			}
			for _, ev := range resp.Events {
				if compact || ev.Kv.ModRevision != next[resp.WatchID] {
					t.Fatalf("watcher %d got revision %d, want %d (compacted: %v)", resp.WatchID, ev.Kv.ModRevision, next[resp.WatchID], compact)
				}
				if next[resp.WatchID]++; ev.Kv.ModRevision == src.kv.Rev() {
					delete(next, resp.WatchID)
				}
			}
		}
		ws.Close()
	}
}

// A snapshot replaces the contents while readers of every kind are at work.
func TestReplacementUnderReaders(t *testing.T) {
	src := newSource(t)
	for range 200 {
		src.put("a", strings.Repeat("v", 1000))
	}
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	kv, err := st.KV()
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan error, 5)
	loop := func(f func() error) {
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := f(); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	loop(func() error { _, err := st.HashKV(t.Context(), 0); return err })
	loop(func() error { _, _, err := st.Hash(); return err })
	loop(func() error {
		_, err := st.History(2, 1<<30, func(_, _ []byte) error { return nil })
		return err
	})
	loop(func() error {
		snap, err := st.Snapshot(t.Context())
		if errors.Is(err, store.ErrBusy) {
			return nil
		}
		if err == nil {
			snap.Release()
		}
		return err
	})
	loop(func() error {
		_, err := kv.Range(t.Context(), []byte("a"), nil, mvcc.RangeOptions{})
		return err
	})
	for range 20 {
		src.put("a", "w")
		follow(t, st, src)
		src.put("a", "x")
		mustReceive(t, st, src.snapshot())
	}
	close(stop)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if g := st.Generation(); g != 21 {
		t.Errorf("generation %d, want 21", g)
	}
	mustEqual(t, st, src)
}
