package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/promote"
)

// family is an etcd with mirrors, one of which has been promoted.
type family struct {
	pki    *heliotest.PKI
	etcd   *etcdtest.Cluster // the old one, lost
	old    *heliotest.Node   // its source node, lost
	heir   *heliotest.Node   // the mirror that was promoted
	record promote.Record
	source *heliotest.Node // beside the heir
	client *clientv3.Client

	behind *heliotest.Node // a relay that stopped before the fork
	below  *heliotest.Node // its mirror
	passed *heliotest.Node // a mirror that followed the old etcd beyond the fork
	at     int64           // where behind stopped
}

// promotedFamily promotes a mirror at a revision that others have not reached, or
// have passed. All but the heir and its source node are stopped.
func promotedFamily(t *testing.T, args ...string) *family {
	t.Helper()
	f := &family{etcd: etcdtest.Start(t, etcdtest.Options{}), pki: heliotest.NewPKI(t)}
	client := f.etcd.Client(t)
	f.old = f.pki.Source("prod-us", f.etcd.Endpoints())
	f.heir = f.pki.Mirror("prod-eu", f.old, false)
	f.behind = f.pki.Mirror("prod-ap", f.old, true)
	f.below = f.pki.Mirror("branch", f.behind, false)
	f.passed = f.pki.Mirror("prod-af", f.old, false)
	f.at = put(t, client, "a", 120)
	stopAt(t, f.at, f.below, f.behind)
	rev := put(t, client, "b", 30)
	stopAt(t, rev, f.heir)
	stopAt(t, put(t, client, "lost", 40), f.passed)
	lose(f.etcd, f.old)

	f.heir.Start()
	awaitLoss(f.heir)
	f.record = f.heir.Promote(append([]string{"--force"}, args...)...)
	if f.record.Revision != rev {
		t.Fatalf("promoted at %d, want %d", f.record.Revision, rev)
	}
	f.heir.WaitPromoted()
	f.client = f.heir.Client()
	put(t, f.client, "c", 50)
	f.source = f.pki.Source("prod-eu", []string{f.heir.Clients})
	f.source.WaitFollowing()
	return f
}

// origin is that of the source node beside the heir.
func (f *family) origin() string {
	return heliograph.Origin{Cluster: "prod-eu", Database: "default", EtcdID: uint64(f.record.EtcdID)}.String()
}

// stopAt stops nodes when they have applied rev, and have it on the disk.
func stopAt(t *testing.T, rev int64, nodes ...*heliotest.Node) {
	t.Helper()
	for _, n := range nodes {
		n.WaitApplied(rev)
		if code, _ := n.Stop(20 * time.Second); code != 0 {
			t.Fatalf("%s: exit code %d", n.Name(), code)
		}
	}
}

// requireHash fails unless the nodes have the heir's HashKV at rev.
func requireHash(t *testing.T, heir *heliotest.Node, rev int64, nodes ...*heliotest.Node) {
	t.Helper()
	want, compacted := heir.HashKV(rev)
	for _, n := range nodes {
		n.WaitApplied(rev)
		n.WaitCompacted(max(0, compacted))
		if got, at := n.HashKV(rev); got != want || at != compacted {
			t.Errorf("%s: HashKV %08x at revision %d, compacted at %d; the promoted etcd has %08x, compacted at %d", n.Name(), got, rev, at, want, compacted)
		}
	}
}

// requireWithout fails unless the node has gone over to the history of the origin
// without a snapshot but its first.
func requireWithout(t *testing.T, n *heliotest.Node, origin string, follows heliograph.ClusterID) {
	t.Helper()
	if got := n.Snapshots(); got != 1 {
		t.Errorf("%s has installed %d snapshots, want the first one alone", n.Name(), got)
	}
	if !strings.Contains(n.Log(), "history of a promoted cluster adopted") {
		t.Errorf("%s has not adopted the new history", n.Name())
	}
	if s, err := n.Status(); err != nil || s.Origin != origin {
		t.Errorf("%s holds %s, %v, want %s", n.Name(), s.Origin, err, origin)
	}
	if got := n.Follows(); got != follows {
		t.Errorf("%s: node.json says that it follows %s, want %s", n.Name(), got, follows)
	}
}

// requireLeft fails unless the node is diverged because it has passed the fork, has
// applied nothing since, and did not go on asking: the source node has refused so
// many in all.
func requireLeft(t *testing.T, n, source *heliotest.Node, refused float64, rev int64, why string) {
	t.Helper()
	requireDiverged(t, n, rev, why)
	s := n.WaitDiverged()
	if !strings.Contains(s.Why, "has followed cluster prod-us so far and --from names "+source.Cluster) {
		t.Errorf("%s says %q, want both clusters", n.Name(), s.Why)
	}
	if got := n.Follows(); got != "prod-us" {
		t.Errorf("%s: node.json says %s already", n.Name(), got)
	}
	if got := source.MetricWith("heliograph_source_refusals_total", `code="diverged"`); got != refused {
		t.Errorf("refused %v times, want %v", got, refused)
	}
}

// After a promotion: mirrors of the old cluster that have not passed the fork follow
// the new one without a snapshot, also down a chain; one that has is diverged, and
// keeps what it holds, whatever it is told to do on divergence.
func TestFork(t *testing.T) {
	t.Parallel()
	f := promotedFamily(t)
	origin := f.origin()
	f.behind.Point(f.source)
	f.behind.Start()
	f.below.Start()
	f.below.WaitFollowing()
	requireHash(t, f.heir, put(t, f.client, "d", 30), f.source, f.behind, f.below)
	requireWithout(t, f.behind, origin, "prod-eu")
	requireWithout(t, f.below, origin, "prod-ap")
	if got := f.source.Metric("heliograph_source_snapshots_total"); got != 0 {
		t.Errorf("%v snapshots sent", got)
	}
	if got := f.source.MetricWith("heliograph_source_histories_total", `result="proven"`); got < 1 {
		t.Errorf("%v histories proven", got)
	}

	f.passed.Point(f.source, "--on-divergence", "resync")
	f.passed.Start()
	last := f.record.Revision + 40
	requireLeft(t, f.passed, f.source, 1, last, fmt.Sprintf("up to revision %d, and %s left that at revision %d", last, origin, f.record.Revision))
	if got := f.passed.Snapshots(); got != 1 {
		t.Errorf("%s has dropped its replica: %d snapshots", f.passed.Name(), got)
	}

	// The old cluster comes back: who left it cannot return, and loses nothing by
	// trying; who has passed the fork goes on there.
	f.etcd.Restart(t)
	f.old.Start()
	f.passed.Point(f.old)
	f.passed.Start()
	f.passed.WaitFollowing()
	heliotest.RequireEqual(t, f.etcd, put(t, f.etcd.Client(t), "e", 10), f.passed)
	if got := f.passed.Snapshots(); got != 1 {
		t.Errorf("%s has installed %d snapshots", f.passed.Name(), got)
	}
	rev := f.behind.WaitFollowing().AppliedRevision
	f.behind.Point(f.old)
	f.behind.Start()
	requireDiverged(t, f.behind, rev, fmt.Sprintf("at revision %d, when prod-eu was promoted", f.record.Revision))
	f.behind.Point(f.source)
	f.behind.Start()
	requireHash(t, f.heir, put(t, f.client, "f", 10), f.behind, f.below)
	requireWithout(t, f.behind, origin, "prod-eu")

	// Only who is told to drops what the old cluster alone had.
	f.passed.Point(f.source)
	f.passed.Start()
	f.passed.WaitDiverged()
	f.passed.Resync()
	requireHash(t, f.heir, put(t, f.client, "g", 10), f.passed)
	if got := f.passed.Follows(); got != "prod-eu" {
		t.Errorf("node.json says that %s follows %s", f.passed.Name(), got)
	}
}

// A promotion that leaves out revisions: mirrors get a snapshot, which is no
// divergence.
func TestForkWithBump(t *testing.T) {
	t.Parallel()
	f := promotedFamily(t, "--bump-revision", "1000")
	f.behind.Point(f.source)
	f.behind.Start()
	f.below.Start()
	rev := put(t, f.client, "d", 10)
	if first := f.record.Revision + 1000; rev <= first {
		t.Fatalf("revision %d after a bump to %d", rev, first)
	}
	requireHash(t, f.heir, rev, f.source, f.behind, f.below)
	for _, n := range []*heliotest.Node{f.behind, f.below} {
		if got := n.Snapshots(); got != 2 {
			t.Errorf("%s has installed %d snapshots, want the first and one over the bump", n.Name(), got)
		}
	}
	f.passed.Point(f.source)
	f.passed.Start()
	requireLeft(t, f.passed, f.source, 1, f.record.Revision+40, fmt.Sprintf("left that at revision %d", f.record.Revision))
}

// A mirror that has slept through two promotions follows the second heir, and so
// does one of the first heir's. What was restored from a snapshot of a promoted
// etcd is still an heir of what that left, and not of what it was.
func TestTwoForks(t *testing.T) {
	t.Parallel()
	f := promotedFamily(t)
	kept := filepath.Join(t.TempDir(), "kept")
	copyDir(t, f.below.DataDir, kept)
	// The first heir's mirror, which came over the first fork without a snapshot.
	f.behind.Point(f.source)
	f.behind.Start()
	late := f.pki.Mirror("late", f.source, false)
	stopAt(t, put(t, f.client, "d", 10), late)
	rev := put(t, f.client, "e", 10)
	f.behind.WaitApplied(rev)
	snapshot := filepath.Join(t.TempDir(), "snapshot.db")
	etcdtest.Etcdctl(t, "--endpoints", f.heir.Clients, "snapshot", "save", snapshot)

	f.source.Kill()
	f.heir.Kill()
	awaitLoss(f.behind)
	second := f.behind.Promote("--force")
	if second.Revision != rev {
		t.Fatalf("promoted at %d, want %d", second.Revision, rev)
	}
	f.behind.WaitPromoted()
	client := f.behind.Client()
	put(t, client, "g", 20)
	source := f.pki.Source("prod-ap", []string{f.behind.Clients})
	source.WaitFollowing()
	f.below.Point(source) // at the first fork's old side
	f.below.Start()
	late.Point(source)
	late.Start()
	f.below.WaitFollowing()
	late.WaitFollowing()
	requireHash(t, f.behind, put(t, client, "h", 20), source, f.below, late)
	origin := heliograph.Origin{Cluster: "prod-ap", Database: "default", EtcdID: uint64(second.EtcdID)}.String()
	requireWithout(t, f.below, origin, "prod-ap")
	requireWithout(t, late, origin, "prod-ap")
	f.passed.Point(source)
	f.passed.Start()
	requireLeft(t, f.passed, source, 1, f.record.Revision+40, fmt.Sprintf("left that at revision %d", f.record.Revision))
	f.passed.Kill()

	restored := etcdtest.Start(t, etcdtest.Options{})
	restored.Restore(t, snapshot)
	third := f.pki.Source("restored", restored.Endpoints())
	third.WaitFollowing()
	late.Point(third)
	late.Start()
	requireDiverged(t, late, late.WaitDiverged().AppliedRevision, "no promotion is known that leads from the one to the other")
	late.Kill()
	f.passed.Point(third)
	f.passed.Start()
	requireLeft(t, f.passed, third, 2, f.record.Revision+40, fmt.Sprintf("left that at revision %d", f.record.Revision))
	f.below.Kill()
	if err := os.RemoveAll(f.below.DataDir); err != nil {
		t.Fatal(err)
	}
	copyDir(t, kept, f.below.DataDir)
	f.below.Point(third)
	f.below.Start()
	heliotest.RequireEqual(t, restored, put(t, restored.Client(t), "i", 20), third, f.below)
	s, err := third.Status()
	if err != nil {
		t.Fatal(err)
	}
	requireWithout(t, f.below, s.Origin, "restored")
}

// Killed at any moment around the fork, a mirror holds the old history or the new
// one, which are the same so far, and goes on.
func TestForkKilled(t *testing.T) {
	t.Parallel()
	f := promotedFamily(t)
	origin := f.origin()
	r := rand.New(rand.NewPCG(seed(t), 0))
	kept := filepath.Join(t.TempDir(), "kept")
	copyDir(t, f.behind.DataDir, kept)
	f.behind.Point(f.source)
	const mark, rounds = "history of a promoted cluster adopted", 10
	adopted := 0
	for round := range rounds {
		if err := os.RemoveAll(f.behind.DataDir); err != nil {
			t.Fatal(err)
		}
		copyDir(t, kept, f.behind.DataDir)
		before := len(f.behind.Log())
		f.behind.Start()
		if round%2 == 0 {
			// Right behind the handshake: the fork is being noted.
			deadline := time.Now().Add(time.Minute)
			for !strings.Contains(f.behind.Log()[before:], "msg=following part=upstream") {
				if err := f.behind.Err(); err != nil || time.Now().After(deadline) {
					t.Fatalf("round %d: no handshake: %v", round, err)
				}
			}
		} else {
			// From before the hello to behind the first records.
			select {
			case <-time.After(time.Duration(r.IntN(120)) * time.Millisecond):
			case <-f.behind.Exited():
				t.Fatal(f.behind.Err())
			}
		}
		f.behind.Kill()
		if strings.Contains(f.behind.Log()[before:], mark) {
			adopted++
		}
		f.behind.Start()
		requireHash(t, f.heir, put(t, f.client, fmt.Sprint("round", round), 3), f.behind)
		if s, err := f.behind.Status(); err != nil || s.Origin != origin {
			t.Errorf("round %d: it holds %s, %v, want %s", round, s.Origin, err, origin)
		}
		f.behind.Kill()
	}
	t.Logf("adopted before %d of %d kills", adopted, rounds)
	if got := f.source.Metric("heliograph_source_snapshots_total"); got != 0 {
		t.Errorf("%v snapshots sent", got)
	}
}

// copyDir copies a stopped node's data directory.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Remove(filepath.Join(from, "admin.sock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
