package store_test

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// After a Reset any history may come, and who watched or read the old one gets an
// error, never the new one.
func TestResetEndsReadersAndWatchers(t *testing.T) {
	src, other := newSource(t), newSource(t)
	fill(src, "k", "value", 20)
	dir := t.TempDir()
	st := openStore(t, store.Config{Dir: dir})
	mustReceive(t, st, src.snapshot())
	kv, err := st.KV()
	if err != nil {
		t.Fatal(err)
	}
	ws := kv.NewWatchStream()
	if _, err := ws.Watch(t.Context(), 1, []byte("k"), []byte("l"), 0); err != nil {
		t.Fatal(err)
	}
	reading := kv.Read(mvcc.ConcurrentReadTxMode, traceutil.TODO())

	if err := st.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.KV(); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("a view of nothing: %v", err)
	}
	if st.Applied() != 0 || !st.Origin().IsZero() || st.Generation() != 2 || len(files(t, dir)) > 1 {
		t.Errorf("revision %d, origin %s, generation %d, files %v", st.Applied(), st.Origin(), st.Generation(), files(t, dir))
	}
	// What was begun is ended in peace.
	if r, err := reading.Range(t.Context(), []byte("k3"), nil, mvcc.RangeOptions{}); err != nil || len(r.KVs) != 1 {
		t.Errorf("a read that was under way: %+v, %v", r, err)
	}
	reading.End()
	if _, err := kv.Range(t.Context(), []byte("k3"), nil, mvcc.RangeOptions{}); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("a read of the old view: %v", err)
	}
	if late := kv.Read(mvcc.ConcurrentReadTxMode, traceutil.TODO()); late.Rev() != 0 {
		t.Errorf("the old view is at revision %d", late.Rev())
	}
	if _, err := kv.NewWatchStream().Watch(t.Context(), 1, []byte("k"), nil, 0); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("a watch on the old view: %v", err)
	}

	fill(other, "k", "other", 30)
	if _, err := receive(st, other.snapshot(), heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 7}); err != nil {
		t.Fatal(err)
	}
	other.put("k1", "new")
	follow(t, st, other)
	mustEqual(t, st, other)
	if again, err := st.KV(); err != nil || again == kv {
		t.Errorf("the same view serves another history (%v)", err)
	}
	select {
	case r := <-ws.Chan():
		t.Errorf("a watcher of the old history got %+v", r)
	default:
	}
	ws.Close()
	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	defer closeStore(t, st)
	mustEqual(t, st, other)
}

func TestResetWhileReceiving(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{})
	if err := st.Reset(); err != nil {
		t.Errorf("reset of an empty store: %v", err)
	}
	mustReceive(t, st, src.snapshot())
	r, err := st.ReceiveSnapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Reset(); err == nil || st.Applied() == 0 {
		t.Errorf("reset while a snapshot is being received: %v", err)
	}
	if err := r.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := st.Reset(); err != nil {
		t.Error(err)
	}
}
