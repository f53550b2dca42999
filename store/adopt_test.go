package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// promoted is the origin of a cluster that was promoted from origin.
var promoted = heliograph.Origin{Cluster: "prod-eu", Database: "default", EtcdID: 0x5555}

// fork is where it left origin.
func fork(rev int64) heliograph.Fork {
	return heliograph.Fork{
		Origin: origin.String(), Revision: rev, Cluster: promoted.Cluster, Database: promoted.Database, EtcdID: heliograph.EtcdID(promoted.EtcdID),
		Token: "token", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func wantDiverged(t *testing.T, err error, why string) {
	t.Helper()
	if d, ok := errors.AsType[*heliograph.DivergedError](err); !ok || !strings.Contains(d.Why, why) {
		t.Errorf("got %v, want a divergence with %q", err, why)
	}
}

// What a replica holds is part of two histories up to the fork: it goes on with
// the other one, durably, without losing anything, and says so to those below.
func TestAdopt(t *testing.T) {
	src := newSource(t)
	fill(src, "k", "v", 30)
	dir := t.TempDir()
	st := openStore(t, store.Config{Dir: dir})
	to := heliograph.Lineage{Origin: promoted, Forks: []heliograph.Fork{fork(31)}}
	if err := st.Adopt(to); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("before the first snapshot: %v", err)
	}
	mustReceive(t, st, src.snapshot())
	fill(src, "n", "v", 5) // 32 to 36
	proof := st.Proof()

	changed := st.Changed()
	if err := st.Adopt(to); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if got := st.Lineage(); !reflect.DeepEqual(got, to) || st.Origin() != promoted {
		t.Errorf("lineage %+v", got)
	}
	if st.Generation() != 2 || !reflect.DeepEqual(st.Proof(), proof) {
		t.Errorf("generation %d, proof %+v", st.Generation(), st.Proof())
	}
	if err := st.Adopt(to); err != nil || st.Generation() != 2 {
		t.Errorf("again: %v, generation %d", err, st.Generation())
	}
	// Durable on return: what a crash would leave.
	crashed := t.TempDir()
	data, err := os.ReadFile(filepath.Join(dir, "default.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(crashed, "default.db"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	again := newStore(t, store.Config{Dir: crashed})
	if got := again.Lineage(); !reflect.DeepEqual(got, to) || again.Applied() != 31 {
		t.Errorf("after a crash: lineage %+v, revision %d", got, again.Applied())
	}
	follow(t, st, src)
	mustEqual(t, st, src)

	// A second promotion; the list may begin with what is known already.
	second := fork(36)
	second.Origin, second.Cluster, second.EtcdID, second.Token = promoted.String(), "prod-ap", 0x6666, "second"
	last := heliograph.Lineage{Origin: second.Heir(), Forks: []heliograph.Fork{fork(31), second}}
	if err := st.Adopt(last); err != nil {
		t.Fatal(err)
	}
	closeStore(t, st)
	st = openStore(t, store.Config{Dir: dir})
	defer func() { closeStore(t, st) }()
	if got := st.Lineage(); !reflect.DeepEqual(got, last) || st.Applied() != 36 {
		t.Errorf("opened again: lineage %+v, revision %d", got, st.Applied())
	}
}

// What is no part of the other history is left alone.
func TestAdoptRefuses(t *testing.T) {
	src := newSource(t)
	fill(src, "k", "v", 30)
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	elsewhere := fork(40)
	elsewhere.Origin = promoted.String()
	early := fork(20) // the heir was promoted again before it had come to the fork
	early.Origin = promoted.String()
	for name, test := range map[string]struct {
		forks []heliograph.Fork
		why   string
	}{
		"passed":         {[]heliograph.Fork{fork(30)}, "up to revision 31, and prod-eu/default@5555 left that at revision 30"},
		"unknown":        {[]heliograph.Fork{elsewhere}, "no promotion is known"},
		"no forks":       {nil, "no promotion is known"},
		"passed further": {[]heliograph.Fork{fork(40), early}, "at revision 20"},
	} {
		t.Run(name, func(t *testing.T) {
			wantDiverged(t, st.Adopt(heliograph.Lineage{Origin: promoted, Forks: test.forks}), test.why)
			if st.Origin() != origin || st.Generation() != 1 || len(st.Lineage().Forks) != 0 {
				t.Errorf("lineage %+v, generation %d", st.Lineage(), st.Generation())
			}
		})
	}
}

// withForks returns the snapshot as a promoted etcd would give it.
func withForks(t *testing.T, snapshot []byte, forks ...heliograph.Fork) []byte {
	t.Helper()
	return rewrite(t, snapshot, func(tx *bolt.Tx) error {
		list, err := heliograph.EncodeForks(forks)
		if err != nil {
			return err
		}
		b, err := tx.CreateBucket([]byte("heliograph"))
		if err != nil {
			return err
		}
		return errors.Join(b.Put([]byte("format"), []byte("promoted")), b.Put([]byte("origin"), []byte(origin.String())), b.Put([]byte("forks"), list))
	})
}

// The forks in a snapshot come with it, and lead from what it replaces to what it
// is: from an etcd and from another node.
func TestSnapshotBringsItsForks(t *testing.T) {
	src := newSource(t)
	fill(src, "k", "v", 20)
	follower, passed, fresh := newStore(t, store.Config{}), newStore(t, store.Config{}), newStore(t, store.Config{})
	mustReceive(t, follower, src.snapshot()) // at 21
	fill(src, "n", "v", 10)
	mustReceive(t, passed, src.snapshot()) // at 31
	snapshot := withForks(t, src.snapshot(), fork(25))
	want := heliograph.Lineage{Origin: promoted, Forks: []heliograph.Fork{fork(25)}}

	if _, err := receive(fresh, snapshot, promoted); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(follower, read(t, fresh), promoted); err != nil {
		t.Fatal(err)
	}
	for name, st := range map[string]*store.Store{"fresh": fresh, "follower": follower} {
		if got := st.Lineage(); !reflect.DeepEqual(got, want) || st.Applied() != 31 {
			t.Errorf("%s: lineage %+v, revision %d", name, got, st.Applied())
		}
	}
	_, err := receive(passed, snapshot, promoted)
	wantDiverged(t, err, "left that at revision 25")
	_, err = receive(passed, src.snapshot(), promoted)
	wantDiverged(t, err, "no promotion is known")
	if passed.Origin() != origin || passed.Generation() != 1 {
		t.Errorf("lineage %+v, generation %d", passed.Lineage(), passed.Generation())
	}
	// A list that cannot be is not taken for none.
	_, err = receive(newStore(t, store.Config{}), withForks(t, src.snapshot(), heliograph.Fork{Revision: 7}), promoted)
	if err == nil || !strings.Contains(err.Error(), "list of forks") {
		t.Errorf("damaged list: %v", err)
	}
}

// Revisions that were raised behind a fork are no sign that anything is lacking
// before it; those that were raised before it are.
func TestBumpBehindAForkIsNoDivergence(t *testing.T) {
	src := newSource(t)
	fill(src, "k", "v", 20)
	older := src.snapshot()
	fill(src, "n", "v", 10) // at 31
	for name, test := range map[string]struct {
		fork int64
		ok   bool
	}{
		"behind the fork": {31, true},
		"before the fork": {1031, false},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStore(t, store.Config{})
			mustReceive(t, st, older)
			bumped := rewrite(t, withForks(t, src.snapshot(), fork(test.fork)), func(tx *bolt.Tx) error {
				meta := tx.Bucket([]byte("meta"))
				return errors.Join(tx.Bucket([]byte("key")).Put(revKey(1000, 0, false), nil),
					meta.Put([]byte("scheduledCompactRev"), revKey(1000, 0, false)), meta.Put([]byte("finishedCompactRev"), revKey(1000, 0, false)))
			})
			_, err := receive(st, bumped, promoted)
			if test.ok {
				if err != nil || st.Applied() != 1000 || st.Origin() != promoted {
					t.Errorf("%v, revision %d, origin %s", err, st.Applied(), st.Origin())
				}
				return
			}
			wantDiverged(t, err, "raised to 1000")
		})
	}
}

// A copy from before is not handed down as if it were of the new lineage.
func TestSpooledCopyOfAnEarlierLineage(t *testing.T) {
	src := newSource(t)
	fill(src, "k", "v", 5)
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	before, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer before.Release()
	to := heliograph.Lineage{Origin: promoted, Forks: []heliograph.Fork{fork(6)}}
	if err := st.Adopt(to); err != nil {
		t.Fatal(err)
	}
	below := newStore(t, store.Config{})
	if _, err := receive(below, read(t, st), promoted); err != nil {
		t.Fatal(err)
	}
	if got := below.Lineage(); !reflect.DeepEqual(got, to) {
		t.Errorf("lineage %+v", got)
	}
}
