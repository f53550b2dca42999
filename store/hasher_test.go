package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"pgregory.net/rapid"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// A replica that keeps more history than its source is compared with it all the
// same, at every revision and compaction revision.
func TestHashAtAnotherCompaction(t *testing.T) {
	src := newSource(t)
	src.put("a", "1")
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	src.writeUntil(300)
	follow(t, st, src)
	compare := func(rev, compacted int64) {
		t.Helper()
		want := src.hash(rev)
		if max(0, want.CompactRevision) != compacted {
			t.Fatalf("the source is compacted at %d", want.CompactRevision)
		}
		got, err := st.HashAt(t.Context(), rev, compacted)
		if err != nil || got != want.Hash {
			t.Errorf("hash at %d compacted at %d: %08x, %v; want %08x", rev, compacted, got, err, want.Hash)
		}
	}
	compare(300, 0)
	for _, compacted := range []int64{2, 50, 51, 52, 53, 120, 299} {
		src.compact(compacted)
		for _, rev := range []int64{compacted + 1, 200, 300} {
			if rev > compacted {
				compare(rev, compacted)
			}
		}
	}
	// Nothing is left: what etcd hashes then depends on whether it is compacted there.
	for range 3 {
		src.put("a", "b")
	}
	kvs := src.kv.Rev()
	for _, key := range []string{"a", "other"} {
		src.del(key)
	}
	for i := range 50 {
		src.del(fmt.Sprint("k", i))
	}
	follow(t, st, src)
	src.compact(kvs)
	if _, err := st.HashAt(t.Context(), src.kv.Rev(), kvs); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("hash where etcd has two: %v", err)
	}
	src.put("again", "1")
	follow(t, st, src)
	compare(src.kv.Rev(), kvs)

	st.Compact(310)
	waitFor(t, st, "compacted", func() bool { return st.Compacted() > 0 })
	if _, err := st.HashAt(t.Context(), src.kv.Rev(), 100); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("hash as of a compaction that is past: %v", err)
	}
	if _, err := st.HashAt(t.Context(), src.kv.Rev()+1, kvs); !errors.Is(err, heliograph.ErrFutureRevision) {
		t.Errorf("hash of what is to come: %v", err)
	}

	// What MVCC remembers of a compaction says nothing of the file.
	head := src.kv.Rev()
	st.Compact(head)
	waitFor(t, st, "compacted at its head", func() bool { return st.Compacted() == head })
	if h, err := st.HashKV(t.Context(), head); err != nil || h.CompactRevision != 310 {
		t.Errorf("HashKV remembers %+v, %v", h, err)
	}
	if _, err := st.HashAt(t.Context(), head, 310); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("hash of records that are gone: %v", err)
	}
}

// Over random histories, a replica that has compacted less than etcd, or never,
// has etcd's hash at every revision and after every compaction of etcd; and one
// that follows etcd's compactions has it from HashKV.
func TestHashOverRandomHistories(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			rt.Fatalf("%v", err)
		}
		defer os.RemoveAll(dir)
		src := openSource(rt, dir)
		defer func() { src.close() }()
		first := src.snapshot()
		// Nothing is committed by itself.
		keeps := openStore(rt, store.Config{Dir: dir + "/keeps", CommitInterval: time.Hour})
		defer closeStore(rt, keeps)
		follows := openStore(rt, store.Config{Dir: dir + "/follows"})
		defer closeStore(rt, follows)
		mustReceive(rt, keeps, first)
		mustReceive(rt, follows, first)

		compacted := int64(0)
		for range rapid.IntRange(1, 5).Draw(rt, "compactions") {
			randomWrites(rt, src, 15)
			if rapid.IntRange(0, 3).Draw(rt, "empty") == 0 {
				src.do(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte("k"), []byte("l")) })
			}
			follow(rt, keeps, src)
			follow(rt, follows, src)
			if head := src.kv.Rev(); head > max(compacted, 1) {
				compacted = rapid.Int64Range(max(compacted, 1)+1, head).Draw(rt, "compact")
				src.compact(compacted)
				follows.Compact(compacted)
				waitFor(rt, follows, "compaction", func() bool { return follows.Compacted() == compacted })
			}
			if rapid.Bool().Draw(rt, "reopen") { // and forget the hash of the compaction
				src.close()
				src = openSource(rt, dir)
			}
			// Asked for 0, etcd reads what it has, also where it is compacted at its head.
			newest := src.hash(0)
			for _, st := range []*store.Store{keeps, follows} {
				got, err := st.HashAt(rt.Context(), newest.HashRevision, max(0, newest.CompactRevision))
				if errors.Is(err, heliograph.ErrCompacted) && emptiedAt(rt, src, newest.HashRevision) {
					continue // and another one where it remembers
				}
				if err != nil || got != newest.Hash {
					rt.Fatalf("newest: %08x, %v; want %+v", got, err, newest)
				}
			}
			for rev := max(compacted, 1); rev <= src.kv.Rev(); rev++ {
				want := src.hash(rev)
				got, err := keeps.HashAt(rt.Context(), rev, max(0, want.CompactRevision))
				if errors.Is(err, heliograph.ErrCompacted) && emptiedAt(rt, src, rev) {
					continue // etcd has two hashes there
				}
				if err != nil || got != want.Hash {
					rt.Fatalf("more history, at %d: %08x, %v; want %+v", rev, got, err, want)
				}
				if rev == compacted {
					continue // the two do not remember the same
				}
				if got, err := follows.HashKV(rt.Context(), rev); err != nil || got != want {
					rt.Fatalf("same history, at %d: %+v, %v; want %+v", rev, got, err, want)
				}
			}
		}
	})
}

// emptiedAt reports whether no key is left at rev, while there may have been some
// just before.
func emptiedAt(t fataler, src *source, rev int64) bool {
	t.Helper()
	r, err := src.kv.Range(context.Background(), []byte{0}, []byte{}, mvcc.RangeOptions{Rev: rev, CountOnly: true})
	if err != nil {
		t.Fatalf("range at %d: %v", rev, err)
	}
	return r.Count == 0
}

// A hash is made in pieces while others write, commit and ask for compactions, and
// is that of one moment all the same.
func TestHashWhileOthersWrite(t *testing.T) {
	src := newSource(t)
	for i := range 500 { // revisions of 10, of which later ones replace a part
		src.do(func(tx mvcc.TxnWrite) {
			for k := range 10 {
				tx.Put(fmt.Append(nil, (i*7+k*k)%1500), fmt.Append(nil, i), 0)
			}
		})
	}
	rev := src.kv.Rev()
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	compactions := []int64{-1}
	want := map[int64]store.HashKV{-1: src.hash(rev)}
	for c := int64(50); c < rev; c += 50 {
		src.compact(c)
		compactions = append(compactions, c)
		want[c] = src.hash(rev)
	}

	done := make(chan error)
	go func() {
		defer close(done)
		for i := range 2000 {
			next := st.Applied() + 1
			b := heliograph.Batch{Rev: next, Records: []heliograph.Record{{
				Key:   revKey(next, 0, false),
				Value: marshal(t, &mvccpb.KeyValue{Key: fmt.Append(nil, "new", i), CreateRevision: next, ModRevision: next, Version: 1}),
			}}}
			if err := st.Apply(b); err != nil {
				done <- err
				return
			}
			if i%200 == 0 {
				st.Compact(compactions[min(i/200+1, len(compactions)-1)])
			}
			if i%20 == 0 {
				if _, err := st.Commit(); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	for hashes, running := 0, true; running; hashes++ {
		select {
		case err, failed := <-done:
			if failed {
				t.Fatal(err)
			}
			running = false
			t.Logf("%d hashes", hashes)
		default:
		}
		got, err := st.HashKV(t.Context(), rev)
		if err != nil || got.Hash != want[got.CompactRevision].Hash {
			t.Fatalf("%+v, %v; want %+v", got, err, want[got.CompactRevision])
		}
	}
}

// One revision of more records than are read at once.
func TestHashOfHugeRevisions(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	for i, n := range []int{1, 5000, 511, 512, 513, 2000} {
		src.do(func(tx mvcc.TxnWrite) {
			for k := range n {
				tx.Put(fmt.Append(nil, (k+i*300)%6000), fmt.Append(nil, i), 0)
			}
		})
	}
	rev := src.put("last", "one")
	follow(t, st, src)
	for c := int64(2); c < rev; c++ {
		src.compact(c)
		want := src.hash(rev)
		if got, err := st.HashAt(t.Context(), rev, c); err != nil || got != want.Hash {
			t.Errorf("compacted at %d: %08x, %v; want %08x", c, got, err, want.Hash)
		}
	}
}
