package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"pgregory.net/rapid"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// A store that follows a source from a snapshot in the middle of a random
// history, and is reopened at random, has the source's hash at every step; and
// so has a second store that follows the first one's History.
func TestExactOverRandomHistories(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dirs := [3]string{}
		for i := range dirs {
			d, err := os.MkdirTemp(base, "")
			if err != nil {
				rt.Fatalf("%v", err)
			}
			defer os.RemoveAll(d)
			dirs[i] = d
		}
		src := openSource(rt, dirs[0])
		defer src.close()
		st := openStore(rt, store.Config{Dir: dirs[1]})
		defer func() { closeStore(rt, st) }()

		randomWrites(rt, src, 30)
		first := src.snapshot()
		mustReceive(rt, st, first)
		mustEqual(rt, st, src)

		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			randomWrites(rt, src, 20)
			follow(rt, st, src)
			switch rapid.IntRange(0, 4).Draw(rt, "event") {
			case 0:
				closeStore(rt, st)
				st = openStore(rt, store.Config{Dir: dirs[1]})
			case 1:
				if _, err := st.Commit(); err != nil {
					rt.Fatalf("commit: %v", err)
				}
			case 2:
				floor := max(1, st.Compacted())
				if rev := rapid.Int64Range(floor, src.kv.Rev()).Draw(rt, "compact"); rev > floor {
					second := replay(rt, st, first, dirs[2])
					mustEqual(rt, second, src)
					closeStore(rt, second)
					src.compact(rev)
					st.Compact(rev)
					waitFor(rt, st, "compaction", func() bool { return st.Compacted() == rev })
					first = src.snapshot()
				}
			case 3:
				mustReceive(rt, st, src.snapshot())
			}
			mustEqual(rt, st, src)
		}
		second := replay(rt, st, first, dirs[2])
		defer closeStore(rt, second)
		mustEqual(rt, second, src)
	})
}

// replay builds a store in dir from snapshot and what st's history adds.
func replay(t fataler, st *store.Store, snapshot []byte, dir string) *store.Store {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatalf("%v", err)
	}
	second := openStore(t, store.Config{Dir: dir})
	mustReceive(t, second, snapshot)
	for _, b := range history(t, st, second.Applied()+1, 500) {
		if err := second.Apply(b); err != nil {
			t.Fatalf("apply %d from history: %v", b.Rev, err)
		}
	}
	return second
}

func randomWrites(t *rapid.T, src *source, most int) {
	key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf("k%02d", rapid.IntRange(0, 15).Draw(t, "key")) })
	value := rapid.SliceOfN(rapid.Byte(), 0, 40)
	leases := rapid.SampledFrom([]lease.LeaseID{0, 0, 7, 8, 1 << 62})
	for range rapid.IntRange(1, most).Draw(t, "writes") {
		var ops []func(tx mvcc.TxnWrite)
		del := func(key string, end []byte) {
			ops = append(ops, func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte(key), end) })
		}
		put := func(key string, value []byte, id lease.LeaseID) {
			ops = append(ops, func(tx mvcc.TxnWrite) { tx.Put([]byte(key), value, id) })
		}
		// What is drawn is drawn before the transaction: a draw may panic.
		switch rapid.IntRange(0, 5).Draw(t, "op") {
		case 0:
			del(key.Draw(t, "del"), nil)
		case 1:
			a, b := key.Draw(t, "from"), key.Draw(t, "to")
			del(min(a, b), []byte(max(a, b)+"x"))
		case 2: // puts and deletes in one, no key twice
			keys := rapid.SliceOfNDistinct(key, 1, 12, rapid.ID).Draw(t, "keys")
			for _, k := range keys {
				if rapid.Bool().Draw(t, "put") {
					put(k, value.Draw(t, "value"), leases.Draw(t, "lease"))
				} else {
					del(k, nil)
				}
			}
		default:
			put(key.Draw(t, "key"), value.Draw(t, "value"), leases.Draw(t, "lease"))
		}
		src.do(func(tx mvcc.TxnWrite) {
			for _, op := range ops {
				op(tx)
			}
		})
	}
}

// What History gives is byte for byte what was applied, wherever commits fell
// and however little is asked for at a time.
func TestHistoryAcrossCommits(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	var want []heliograph.Batch
	for i := range 3000 {
		rev := src.do(func(tx mvcc.TxnWrite) {
			for j := range i%7 + 1 {
				tx.Put(fmt.Appendf(nil, "%d-%d", i%50, j), fmt.Appendf(nil, "value %d", i), 0)
			}
		})
		b := src.batch(rev)
		want = append(want, b)
		if err := st.Apply(b); err != nil {
			t.Fatal(err)
		}
		if i%701 == 0 {
			if _, err := st.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, maxBytes := range []int{0, 1, 1000, 1 << 20, 1 << 30} {
		if got := history(t, st, want[0].Rev, maxBytes); !slices.EqualFunc(got, want, equalBatch) {
			t.Errorf("history with %d bytes at a time differs from what was applied", maxBytes)
		}
	}
	last, err := st.History(st.Applied()+1, 100, func(_, _ []byte) error { return errors.New("called") })
	if err != nil || last != st.Applied() {
		t.Errorf("history from the head: %d, %v", last, err)
	}
	if _, err := st.History(st.Applied()+2, 100, nil); !errors.Is(err, heliograph.ErrFutureRevision) {
		t.Errorf("history from beyond the head: %v", err)
	}
	if _, err := st.History(1, 100, nil); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("history from revision 1: %v", err)
	}
	stop := errors.New("stop")
	if _, err := st.History(2, 100, func(_, _ []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of visit: %v", err)
	}
}

// Wherever reading begins, the border between what is committed and what is not
// costs no record: not the last ones of a revision either.
func TestHistoryAtTheCommitBorder(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{CommitInterval: time.Hour})
	mustReceive(t, st, src.snapshot())
	const committed, head = 404, 520 // revision 404 has five records
	for rev := int64(2); rev <= head; rev++ {
		if err := st.Apply(generated(rev)); err != nil {
			t.Fatal(err)
		}
		if rev == committed {
			if _, err := st.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for from := int64(2); from <= head; from++ {
		got := history(t, st, from, 1<<30)
		if len(got) != int(head-from+1) {
			t.Fatalf("from %d: %d revisions", from, len(got))
		}
		for _, b := range got {
			if !equalBatch(b, generated(b.Rev)) {
				t.Fatalf("from %d: revision %d has %d records, or other ones", from, b.Rev, len(b.Records))
			}
		}
	}
}

func equalBatch(a, b heliograph.Batch) bool {
	return a.Rev == b.Rev && slices.EqualFunc(a.Records, b.Records, func(a, b heliograph.Record) bool {
		return string(a.Key) == string(b.Key) && string(a.Value) == string(b.Value)
	})
}

// One revision that deletes 100,000 keys is one batch, one revision of history
// and one watch response's worth of events.
func TestHugeRevision(t *testing.T) {
	const n = 100_000
	src := newSource(t)
	for i := range 100 {
		src.do(func(tx mvcc.TxnWrite) {
			for j := range n / 100 {
				tx.Put(fmt.Appendf(nil, "%03d/%05d", i, j), []byte("v"), 0)
			}
		})
	}
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	rev := src.do(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte("0"), []byte("9")) })
	want := src.batch(rev)
	if len(want.Records) != n {
		t.Fatalf("the source deleted %d keys, want %d", len(want.Records), n)
	}
	if err := st.Apply(want); err != nil {
		t.Fatal(err)
	}
	mustEqual(t, st, src)
	got := history(t, st, rev, 1000)
	if len(got) != 1 || !equalBatch(got[0], want) {
		t.Errorf("history returned %d batches, or other records", len(got))
	}
}

func TestBatchesOutOfOrder(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{})
	if err := st.Apply(heliograph.Batch{Rev: 2}); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("apply before the first snapshot: %v", err)
	}
	mustReceive(t, st, src.snapshot())
	for range 3 {
		src.put("a", "b")
	}
	for _, rev := range []int64{3, 4} {
		err := st.Apply(src.batch(rev))
		if gap, ok := errors.AsType[*heliograph.GapError](err); !ok || gap.Applied != 1 || gap.Got != rev {
			t.Errorf("apply %d on 1: %v", rev, err)
		}
	}
	follow(t, st, src)
	if _, ok := errors.AsType[*heliograph.GapError](st.Apply(src.batch(4))); !ok {
		t.Error("a batch was applied twice")
	}
	if _, err := st.HashKV(context.Background(), 5); !errors.Is(err, heliograph.ErrFutureRevision) {
		t.Errorf("hash of a future revision: %v", err)
	}
}
