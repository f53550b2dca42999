package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	heliotest.Clean()
	os.Exit(code)
}

// minTraffic is what a run under load must have written to count.
const minTraffic = 2000

// fullLoad writes puts, deletes, transactions and leases as fast as etcd takes
// them.
func fullLoad(t *testing.T, client *clientv3.Client) *etcdtest.Load {
	t.Helper()
	return etcdtest.StartLoad(t, client, etcdtest.LoadOptions{
		Workers: 16, Seed: seed(t), Deletes: true, Txns: true, Leases: true,
	})
}

// seed returns a random number that can be given again as HELIO_TEST_SEED.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64()
	if v := os.Getenv("HELIO_TEST_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &s); err != nil {
			t.Fatalf("HELIO_TEST_SEED=%s: %v", v, err)
		}
	}
	t.Logf("HELIO_TEST_SEED=%d", s)
	return s
}

// stop ends a load once it has made enough traffic, and returns etcd's revision.
func stop(t *testing.T, etcd *etcdtest.Cluster, load *etcdtest.Load) int64 {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); load.Written() < minTraffic; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d revisions were written: too little traffic to prove anything", load.Written())
		}
	}
	load.Stop()
	rev := etcd.Revision(t)
	t.Logf("%d revisions written under load, %d writes failed, now at revision %d", load.Written(), load.Failed(), rev)
	return rev
}

func compact(t *testing.T, etcd *etcdtest.Cluster, rev int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := etcd.Client(t).Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
}

// The main job: a history of 50,000 revisions before anything runs, a writer at
// full speed while source and mirror bootstrap and follow, then equal hashes.
func TestMirrorIsExact(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	before := etcdtest.Fill(t, client, 50_000)
	load := fullLoad(t, client)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	source.WaitFollowing()
	s := mirror.WaitFollowing()
	if s.AppliedRevision < before {
		t.Errorf("following at revision %d, below the %d from before it started", s.AppliedRevision, before)
	}
	rev := stop(t, etcd, load)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	compact(t, etcd, rev-100)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)

	load = fullLoad(t, client)
	time.Sleep(2 * time.Second) // the length of the load, not a wait for something
	middle := etcd.Revision(t)
	compact(t, etcd, middle-500) // while it follows
	time.Sleep(time.Second)
	rev = stop(t, etcd, load)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if a, b := source.Snapshots(), mirror.Snapshots(); a != 1 || b != 1 {
		t.Errorf("%d and %d snapshots, want one each", a, b)
	}
	for _, n := range []*heliotest.Node{mirror, source} {
		if code, took := n.Stop(5 * time.Second); code != 0 {
			t.Errorf("%s exited with %d after %s", n.Name(), code, took)
		}
	}
}

func TestLeaderIsKilledWhileTheMirrorFollows(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{Members: 3})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 2000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	load := fullLoad(t, client)
	for range 3 {
		time.Sleep(time.Second)
		leader := etcd.Member(etcd.Leader(t))
		t.Logf("killing %s", leader.Name())
		leader.Kill()
		rev := etcd.Revision(t) // answered by a new leader
		mirror.WaitApplied(rev)
		leader.Start()
		etcd.WaitReady(t)
	}
	rev := stop(t, etcd, load)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if a, b := source.Snapshots(), mirror.Snapshots(); a != 1 || b != 1 {
		t.Errorf("%d and %d snapshots, want one each", a, b)
	}
}

// Source node and mirror node are killed ten times each at random moments. What
// they had applied but not made durable they regain; no history is gone, so
// there is no second snapshot.
func TestKilledTenTimesUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 5000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	source.WaitFollowing()
	mirror.WaitFollowing()
	rng := rand.New(rand.NewPCG(seed(t), 1))
	load := etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Workers: 4, Seed: rng.Uint64(), Deletes: true, Txns: true, Leases: true})
	for i := range 2 * rounds {
		n := []*heliotest.Node{source, mirror}[i%2]
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		n.Restart()
	}
	source.WaitFollowing()
	mirror.WaitFollowing()
	rev := stop(t, etcd, load)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if a, b := source.Snapshots(), mirror.Snapshots(); a != 1 || b != 1 {
		t.Errorf("%d and %d snapshots, want one each: no history was gone", a, b)
	}
}

func TestEtcdCompactsBeyondAStoppedSource(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 3000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	source.Kill()
	rev := etcdtest.Fill(t, client, 3000)
	compact(t, etcd, rev-10)
	rev = etcdtest.Fill(t, client, 500)
	source.Start()
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if a, b := source.Snapshots(), mirror.Snapshots(); a != 2 || b != 2 {
		t.Errorf("%d and %d snapshots, want two each", a, b)
	}
}

func TestSourceCompactsBeyondAStoppedMirror(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 3000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	mirror.Kill()
	rev := etcdtest.Fill(t, client, 3000)
	compact(t, etcd, rev-10)
	source.WaitCompacted(rev - 10)
	rev = etcdtest.Fill(t, client, 500)
	mirror.Start()
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if a, b := source.Snapshots(), mirror.Snapshots(); a != 1 || b != 2 {
		t.Errorf("%d and %d snapshots, want one and two", a, b)
	}
}

// A mirror that was away catches up from the source node's history even if etcd
// itself has compacted, when the source node keeps more.
func TestHistoryOutlivesEtcdsCompaction(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 2000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints(), "--history", "1h")
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	mirror.Kill()
	rev := etcdtest.Fill(t, client, 3000)
	compact(t, etcd, rev-10)
	rev = etcdtest.Fill(t, client, 500)
	source.WaitApplied(rev)
	mirror.Start()
	mirror.WaitApplied(rev)
	if a, b := source.Snapshots(), mirror.Snapshots(); a != 1 || b != 1 {
		t.Errorf("%d and %d snapshots, want one each", a, b)
	}
	wantHash, wantCompacted := source.HashKV(rev)
	if got, compacted := mirror.HashKV(rev); got != wantHash || compacted != wantCompacted {
		t.Errorf("HashKV %08x compacted at %d, the source has %08x at %d", got, compacted, wantHash, wantCompacted)
	}
}

func TestMirrorOfAMirror(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 3000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := pki.Mirror("prod-eu", source, true)
	leaf := pki.Mirror("prod-asia", relay, false)
	leaf.WaitFollowing()
	load := fullLoad(t, client)
	time.Sleep(time.Second)
	relay.Restart()
	time.Sleep(time.Second)
	rev := stop(t, etcd, load)
	heliotest.RequireEqual(t, etcd, rev, source, relay, leaf)
	compact(t, etcd, rev-100)
	heliotest.RequireEqual(t, etcd, rev, source, relay, leaf)
	// What the chain's head loses, its end says.
	etcd.Member(0).Pause()
	leaf.WaitStatus("degraded by the loss of etcd", time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Degraded && s.StalenessMS > 2000
	})
	etcd.Member(0).Resume()
	leaf.WaitFollowing()
}
