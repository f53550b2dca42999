package store_test

import (
	"reflect"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph/store"
)

// Attachments follow puts and deletes, and survive reopening and replacement.
func TestLeases(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	src.lease(7, 60)
	src.lease(9, 30)
	src.do(func(tx mvcc.TxnWrite) {
		tx.Put([]byte("a"), []byte("v"), 7)
		tx.Put([]byte("b"), []byte("v"), 7)
		tx.Put([]byte("c"), []byte("v"), 8)
	})
	st := openStore(t, store.Config{Dir: dir})
	defer func() { closeStore(t, st) }()
	if got := st.Leases(); len(got) != 0 {
		t.Errorf("leases before the first snapshot: %v", got)
	}
	mustReceive(t, st, src.snapshot())
	check := func(when string, want ...store.Lease) {
		t.Helper()
		list := make([]store.Lease, 0, len(want))
		for _, l := range want {
			if got, ok := st.Lease(l.ID); !ok || !reflect.DeepEqual(got, l) {
				t.Errorf("%s: lease %d is %+v, want %+v", when, l.ID, got, l)
			}
			list = append(list, store.Lease{ID: l.ID, TTL: l.TTL})
		}
		if got := st.Leases(); !reflect.DeepEqual(got, list) {
			t.Errorf("%s: leases %v, want %v", when, got, list)
		}
	}
	check("snapshot", store.Lease{ID: 7, TTL: 60, Keys: []string{"a", "b"}}, store.Lease{ID: 8, Keys: []string{"c"}}, store.Lease{ID: 9, TTL: 30})

	src.do(func(tx mvcc.TxnWrite) {
		tx.Put([]byte("a"), []byte("v"), 10) // moves
		tx.Put([]byte("b"), []byte("v"), 0)  // loses it
		tx.DeleteRange([]byte("c"), nil)
		tx.Put([]byte("d"), []byte("v"), 9)
		tx.Put([]byte("e"), []byte("v"), 9)
	})
	src.put("e", "v")
	follow(t, st, src)
	want := []store.Lease{{ID: 7, TTL: 60}, {ID: 9, TTL: 30, Keys: []string{"d"}}, {ID: 10, Keys: []string{"a"}}}
	check("applied", want...)
	if _, ok := st.Lease(8); ok {
		t.Error("a lease that nobody knows but a key that has gone is listed")
	}

	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	check("reopened", want...)

	src.del("d")
	mustReceive(t, st, src.snapshot())
	check("replaced", want[0], store.Lease{ID: 9, TTL: 30}, want[2])
	mustEqual(t, st, src)
}
