package store_test

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

func apply(t *testing.T, st *store.Store, c heliograph.LeaseChange) {
	t.Helper()
	if err := st.ApplyLeases(c); err != nil {
		t.Fatal(err)
	}
}

// table returns the leases of known TTL, as a mirror that begins gets them.
func table(st *store.Store) map[int64]int64 {
	c, _ := st.LeasesSince(0)
	m := make(map[int64]int64)
	for _, l := range c.Put {
		m[l.ID] = l.TTL
	}
	return m
}

func wantTable(t *testing.T, when string, st *store.Store, want map[int64]int64) {
	t.Helper()
	if got := table(st); !maps.Equal(got, want) {
		t.Errorf("%s: %d leases, want %d", when, len(got), len(want))
		if len(got)+len(want) < 20 {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// What the source tells of its leases is there at once and after a restart, and
// a lease stays as long as keys are attached to it.
func TestLeasesAsTheSourceTells(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	src.lease(1, 10)
	src.put("k", "v")
	st := openStore(t, store.Config{Dir: dir})
	defer func() { closeStore(t, st) }()
	if err := st.ApplyLeases(heliograph.LeaseChange{Put: []heliograph.Lease{{ID: 2, TTL: 20}}}); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("before the first snapshot: %v", err)
	}
	mustReceive(t, st, src.snapshot())
	apply(t, st, heliograph.LeaseChange{Put: []heliograph.Lease{{ID: 2, TTL: 20}, {ID: -3, TTL: 30}}})
	src.do(func(tx mvcc.TxnWrite) {
		tx.Put([]byte("a"), []byte("v"), 2)
		tx.Put([]byte("b"), []byte("v"), 2)
		tx.Put([]byte("c"), []byte("v"), 4)
	})
	follow(t, st, src)
	wantTable(t, "told", st, map[int64]int64{1: 10, 2: 20, -3: 30})
	apply(t, st, heliograph.LeaseChange{Removed: []int64{2, -3, 77}})
	wantTable(t, "removed", st, map[int64]int64{1: 10, 2: 20})
	if l, ok := st.Lease(2); !ok || l.TTL != 20 || len(l.Keys) != 2 {
		t.Errorf("removed, but with keys: %+v, %v", l, ok)
	}
	src.do(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte("a"), nil) })
	follow(t, st, src)
	wantTable(t, "one key is left", st, map[int64]int64{1: 10, 2: 20})
	src.do(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte("b"), nil) })
	follow(t, st, src)
	wantTable(t, "no key is left", st, map[int64]int64{1: 10})
	apply(t, st, heliograph.LeaseChange{Reset: true, Put: []heliograph.Lease{{ID: 4, TTL: 40}, {ID: 5, TTL: 50}}})
	want := map[int64]int64{4: 40, 5: 50}
	wantTable(t, "reset", st, want)

	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	wantTable(t, "reopened", st, want)
	if l, ok := st.Lease(4); !ok || l.TTL != 40 || !slices.Equal(l.Keys, []string{"c"}) {
		t.Errorf("reopened: %+v, %v", l, ok)
	}
	mustEqual(t, st, src) // HashKV knows nothing of leases' TTLs
	if err := st.ApplyLeases(heliograph.LeaseChange{Put: []heliograph.Lease{{ID: 9, TTL: 0}}}); err == nil {
		t.Error("a TTL of 0 was taken")
	}
}

// A lease that is gone and back, as etcd's member lists tell it when they lag,
// is not dropped with its last key.
func TestLeaseComesBack(t *testing.T) {
	src := newSource(t)
	src.put("k", "v")
	st := openStore(t, store.Config{Dir: t.TempDir()})
	defer closeStore(t, st)
	mustReceive(t, st, src.snapshot())
	src.do(func(tx mvcc.TxnWrite) { tx.Put([]byte("a"), []byte("v"), 2) })
	follow(t, st, src)
	there := heliograph.LeaseChange{Put: []heliograph.Lease{{ID: 2, TTL: 20}}}
	apply(t, st, there)
	apply(t, st, heliograph.LeaseChange{Removed: []int64{2}})
	apply(t, st, there)
	src.del("a")
	follow(t, st, src)
	wantTable(t, "without keys", st, map[int64]int64{2: 20})
}

// An etcd that is started on a copy recovers the leases by its own lessor.
func TestEtcdRecoversLeases(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	src.put("k", "v")
	st := openStore(t, store.Config{Dir: dir, CommitInterval: time.Hour})
	defer closeStore(t, st)
	mustReceive(t, st, src.snapshot())
	apply(t, st, heliograph.LeaseChange{Put: []heliograph.Lease{{ID: 0x10, TTL: 100}, {ID: 0x20, TTL: 200}}})
	apply(t, st, heliograph.LeaseChange{Removed: []int64{0x10}})
	// The committer has nothing else to commit.
	if _, err := st.Commit(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "default.db"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path = path
	be := backend.New(cfg)
	defer be.Close()
	le := lease.NewLessor(zap.NewNop(), be, nil, lease.LessorConfig{MinLeaseTTL: 1})
	defer le.Stop()
	got := le.Leases()
	if len(got) != 1 || got[0].ID != 0x20 || got[0].TTL() != 200 {
		t.Errorf("etcd's lessor recovered %d leases", len(got))
	}
}

// Whoever follows the changes has the table, however seldom it looks and
// whatever happens in between.
func TestLeasesSince(t *testing.T) {
	src := newSource(t)
	src.put("k", "v")
	st := openStore(t, store.Config{Dir: t.TempDir()})
	defer closeStore(t, st)
	mustReceive(t, st, src.snapshot())
	rng := rand.New(rand.NewPCG(1, 2))
	mine, seq := map[int64]int64{}, uint64(0)
	resets := 0
	for round := range 60 {
		for range rng.IntN(8) {
			var c heliograph.LeaseChange
			for range rng.IntN(900) {
				if id := rng.Int64N(5000) + 1; rng.IntN(3) > 0 {
					c.Put = append(c.Put, heliograph.Lease{ID: id, TTL: rng.Int64N(1000) + 1})
				} else if !slices.ContainsFunc(c.Put, func(l heliograph.Lease) bool { return l.ID == id }) {
					c.Removed = append(c.Removed, id)
				}
			}
			c.Removed = slices.DeleteFunc(c.Removed, func(id int64) bool {
				return slices.ContainsFunc(c.Put, func(l heliograph.Lease) bool { return l.ID == id })
			})
			apply(t, st, c)
		}
		switch {
		case round == 20:
			mustReceive(t, st, src.snapshot()) // which holds none
		case round == 40: // more than anybody remembers
			for i := range int64(40) {
				c := heliograph.LeaseChange{Reset: true}
				for id := range int64(1000) {
					c.Put = append(c.Put, heliograph.Lease{ID: id + 1, TTL: i + 1})
				}
				apply(t, st, c)
			}
		case round%3 > 0 && round < 59:
			continue
		}
		c, next := st.LeasesSince(seq)
		if c.Reset {
			resets++
			clear(mine)
		}
		for _, l := range c.Put {
			mine[l.ID] = l.TTL
		}
		for _, id := range c.Removed {
			delete(mine, id)
		}
		seq = next
		wantTable(t, "followed", st, mine)
	}
	if resets != 3 {
		t.Errorf("%d resets, want 3: at first, by the snapshot, by too many changes", resets)
	}
	if c, next := st.LeasesSince(seq); !c.Empty() || next != seq {
		t.Errorf("nothing has changed, but %d leases and %d removed", len(c.Put), len(c.Removed))
	}
	if c, _ := st.LeasesSince(seq + 1); !c.Reset {
		t.Error("a place of another life is believed")
	}
}

func TestAuth(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	src.put("k", "v")
	st := openStore(t, store.Config{Dir: dir})
	defer func() { closeStore(t, st) }()
	want := func(when string, enabled bool, revision uint64, known bool) {
		t.Helper()
		if e, r, k := st.Auth(); e != enabled || r != revision || k != known {
			t.Errorf("%s: %v %d %v, want %v %d %v", when, e, r, k, enabled, revision, known)
		}
	}
	set := func(enabled bool, revision uint64) {
		t.Helper()
		if err := st.SetAuth(enabled, revision); err != nil {
			t.Fatal(err)
		}
	}
	want("at first", false, 0, false)
	set(true, 7)
	want("told", true, 7, true)
	mustReceive(t, st, src.snapshot())
	want("with a snapshot", true, 7, true)
	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	want("reopened", true, 7, true)
	set(false, 9)
	mustReceive(t, st, src.snapshot())
	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	want("off, replaced and reopened", false, 9, true)
	set(true, 10)
	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	want("on again and reopened", true, 10, true)
}
