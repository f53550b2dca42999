package store_test

import (
	"testing"

	"github.com/heliograph/heliograph/store"
)

// Who holds a view asks again to see whether the store was replaced by another
// one; a view that is new each time would end every watch.
func TestViewsOfAStoreAreEqual(t *testing.T) {
	src := newSource(t)
	src.put("a", "1")
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	before, err := st.KV()
	if err != nil {
		t.Fatal(err)
	}
	src.put("a", "2")
	mustReceive(t, st, src.snapshot())
	if after, err := st.KV(); err != nil || after != before {
		t.Errorf("another view after a snapshot of the same store (%v)", err)
	}
}
