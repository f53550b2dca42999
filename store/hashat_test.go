package store_test

import (
	"errors"
	"fmt"
	"testing"

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
	// Nothing is left: what etcd hashes then is another thing.
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
	compare(src.kv.Rev(), kvs)

	st.Compact(310)
	waitFor(t, st, "compacted", func() bool { return st.Compacted() > 0 })
	if _, err := st.HashAt(t.Context(), src.kv.Rev(), 100); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("hash as of a compaction that is past: %v", err)
	}
	if _, err := st.HashAt(t.Context(), src.kv.Rev()+1, kvs); !errors.Is(err, heliograph.ErrFutureRevision) {
		t.Errorf("hash of what is to come: %v", err)
	}
}
