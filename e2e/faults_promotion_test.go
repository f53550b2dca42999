package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/faulttest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/promote"
)

// slowly is so few bytes per second that a snapshot is on its way, or a mirror is
// catching up, for as long as a test looks.
const slowly = 64 << 10

// behind returns a mirror that reaches its source through a relay.
func behind(t *testing.T, pki *heliotest.PKI, cluster string, source *heliotest.Node) (*heliotest.Node, *faulttest.UDPRelay) {
	t.Helper()
	relay := faulttest.NewUDPRelay(t, source.Listen)
	return pki.NewMirror(cluster, &heliotest.Node{Cluster: source.Cluster, Listen: relay.Addr()}, false), relay
}

// putBulk writes megabytes that no compression makes less, a quarter of one in each
// revision, and returns etcd's revision.
func putBulk(t *testing.T, client *clientv3.Client, megabytes int) int64 {
	t.Helper()
	rng := rand.New(rand.NewPCG(24, 0))
	value := make([]byte, 256<<10)
	rev := int64(0)
	for i := range 4 * megabytes {
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		resp, err := client.Put(t.Context(), fmt.Sprint("bulk/", i), string(value))
		if err != nil {
			t.Fatal(err)
		}
		rev = resp.Header.Revision
	}
	return rev
}

// waitIn waits until the node is in a state.
func waitIn(n *heliotest.Node, want heliograph.State) heliograph.Status {
	return n.WaitStatus(want.String(), 2*time.Minute, func(s heliograph.Status) bool { return s.Status == want })
}

// requireRefused fails unless the node refuses to be promoted, with that reason, and
// stays in the state in which it was.
func requireRefused(t *testing.T, n *heliotest.Node, state heliograph.State, why string, args ...string) {
	t.Helper()
	_, err := n.TryPromote(args...)
	if err == nil || !strings.Contains(err.Error(), "not promoted: ") || !strings.Contains(err.Error(), why) {
		t.Fatalf("%s, promote %v while %s: %v; want it refused with %q", n.Name(), args, state, err, why)
	}
	if s, serr := n.Status(); serr != nil || s.Status != state {
		t.Errorf("%s is %s after it was refused, %v; want %s", n.Name(), s.Status, serr, state)
	}
	t.Logf("%s, promote %v: %v", state, args, err)
}

// requirePromoted fails unless the promoted node is etcd as of the record's revision,
// and takes the next one.
func requirePromoted(t *testing.T, n *heliotest.Node, rec promote.Record, etcd *etcdtest.Cluster) {
	t.Helper()
	n.WaitPromoted()
	requireSame(t, n, rec.Revision, etcd)
	if got := n.Put(n.Client(), "promoted", "1"); got != rec.First() {
		t.Errorf("%s: the first write has revision %d, want %d", n.Name(), got, rec.First())
	}
}

// requireSame fails unless the node's hash at a revision is that of etcd.
func requireSame(t *testing.T, n *heliotest.Node, rev int64, etcd *etcdtest.Cluster) {
	t.Helper()
	want, compacted := etcd.HashKV(t, rev)
	if got, at := n.HashKV(rev); got != want || at != compacted {
		t.Errorf("%s: HashKV %08x at revision %d, compacted at %d; etcd has %08x at %d", n.Name(), got, rev, at, want, compacted)
	}
}

// Row 24: promote in every status. Before a whole snapshot is there, nothing forces
// it; while the source answers, --force does; what is promoted is etcd's whole
// history up to its revision. What was refused goes on as if nothing had been asked.
func TestRow24PromotedBeforeTheDataWasWhole(t *testing.T) {
	t.Parallel()
	const force = "--force"
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	put(t, client, "a", 200)
	source := pki.Source("prod-us", etcd.Endpoints())
	late, lateRelay := behind(t, pki, "prod-late", source)
	late.Start()
	late.WaitFollowing()
	late.Kill()
	head := putBulk(t, client, 16)
	source.WaitApplied(head)
	never, neverRelay := behind(t, pki, "prod-never", source)
	neverRelay.Lose(true, true)
	first, firstRelay := behind(t, pki, "prod-first", source)
	firstRelay.Limit(slowly)
	lateRelay.Limit(slowly)
	for _, n := range []*heliotest.Node{never, first, late} {
		n.Start()
	}
	follower := pki.Mirror("prod-eu", source, false)

	waitIn(never, heliograph.Disconnected)
	requireRefused(t, never, heliograph.Disconnected, "no whole snapshot")
	requireRefused(t, never, heliograph.Disconnected, "no whole snapshot", force)
	neverRelay.Lose(false, false)

	s := first.WaitStatus("half way", 2*time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Bootstrapping && s.BytesDone > 0
	})
	t.Logf("%d of %d bytes are there", s.BytesDone, s.BytesTotal)
	requireRefused(t, first, heliograph.Bootstrapping, "no whole snapshot")
	requireRefused(t, first, heliograph.Bootstrapping, "no whole snapshot", force)
	// Nor is one promoted that is killed then, and comes back without its source.
	firstRelay.Lose(true, true)
	first.Restart()
	waitIn(first, heliograph.Disconnected)
	requireRefused(t, first, heliograph.Disconnected, "no whole snapshot", force)
	firstRelay.Lose(false, false)
	firstRelay.Limit(0)

	waitIn(late, heliograph.CatchingUp)
	requireRefused(t, late, heliograph.CatchingUp, "answers")
	rec := late.Promote(force)
	if rec.Revision >= head || rec.MissingRevisions < head-rec.Revision || rec.LastKnownRevision < head {
		t.Errorf("promoted at revision %d of %d: %+v", rec.Revision, head, rec)
	}
	t.Logf("promoted at revision %d of %d", rec.Revision, head)
	requirePromoted(t, late, rec, etcd)

	follower.WaitFollowing()
	requireRefused(t, follower, heliograph.Following, "answers")
	rec = promoteAtOnce(t, follower, force)
	requirePromoted(t, follower, rec, etcd)
	if again := follower.Promote(); again.Token != rec.Token {
		t.Errorf("promoted twice: %+v and %+v", rec, again)
	}

	heliotest.RequireEqual(t, etcd, put(t, client, "after", 10), never, first)
}

// promoteAtOnce promotes several times at once. One does it; the others are told that
// it is being done, or that it has been.
func promoteAtOnce(t *testing.T, n *heliotest.Node, args ...string) promote.Record {
	t.Helper()
	const calls = 6
	recs, errs := make([]promote.Record, calls), make([]error, calls)
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() { recs[i], errs[i] = n.TryPromote(args...) })
	}
	wg.Wait()
	var rec promote.Record
	during := 0
	for i := range calls {
		switch {
		case errs[i] == nil && rec.Token == "":
			rec = recs[i]
		case errs[i] == nil && recs[i].Token != rec.Token:
			t.Errorf("promoted twice: %+v and %+v", rec, recs[i])
		case errs[i] != nil && !strings.Contains(errs[i].Error(), "being promoted already"):
			t.Error(errs[i])
		case errs[i] != nil:
			during++
		}
	}
	if rec.Token == "" {
		t.Fatal("nobody was told of the promotion")
	}
	t.Logf("%d of %d came while it was being promoted", during, calls)
	return rec
}

// Row 24, where the source does not answer: a mirror that has its data may be
// promoted; one that is diverged only by force, and one whose own file is damaged not
// even then.
func TestRow24PromotedWithoutASource(t *testing.T) {
	t.Parallel()
	const force = "--force"
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	put(t, client, "a", 200)
	backup := etcd.Save(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	names := []string{"prod-degraded", "prod-alone", "prod-diverged", "prod-damaged"}
	mirrors := make(map[string]*heliotest.Node)
	for _, name := range names {
		mirrors[name] = pki.Mirror(name, source, false)
	}
	if _, err := client.Put(t.Context(), "b", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "c", 50)
	for _, n := range mirrors {
		n.WaitApplied(rev)
	}
	damaged := mirrors["prod-damaged"]
	if code, _ := damaged.Stop(10 * time.Second); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	flip(t, damaged, marker)
	damaged.Start()
	waitIn(damaged, heliograph.Diverged)
	requireRefused(t, damaged, heliograph.Diverged, "damaged", force)

	// The etcd falls silent; then its source node is gone, too.
	etcd.Member(0).Pause()
	degraded := mirrors["prod-degraded"]
	waitIn(degraded, heliograph.Degraded)
	rec := degraded.Promote()
	etcd.Member(0).Resume()
	requirePromoted(t, degraded, rec, etcd)

	alone := mirrors["prod-alone"]
	source.WaitFollowing()
	source.WaitStatus("durable", time.Minute, func(s heliograph.Status) bool { return s.DurableRevision >= rev })
	source.Kill()
	alone.Restart()
	waitIn(alone, heliograph.Disconnected)
	requirePromoted(t, alone, alone.Promote(), etcd)

	// The etcd comes back from a backup, the mirror holds what it has lost.
	want, compacted := etcd.HashKV(t, rev)
	etcd.Restore(t, backup)
	put(t, client, "other", 100)
	source.Start()
	waitIn(source, heliograph.Diverged)
	source.Resync()
	source.WaitFollowing()
	diverged := mirrors["prod-diverged"]
	waitIn(diverged, heliograph.Diverged)
	requireRefused(t, diverged, heliograph.Diverged, "good copy")
	rec = diverged.Promote(force)
	diverged.WaitPromoted()
	if got, at := diverged.HashKV(rec.Revision); rec.Revision != rev || got != want || at != compacted {
		t.Errorf("promoted with HashKV %08x at revision %d, compacted at %d; the good copy has %08x at %d, compacted at %d",
			got, rec.Revision, at, want, rev, compacted)
	}
}

// Row 25: ten thousand leases. The promoted node has them with the same ids, TTLs and
// keys; each starts again in full; whoever is not kept alive expires, with its keys,
// and whoever is lives on.
func TestRow25LeasesLiveForEver(t *testing.T) {
	t.Parallel()
	const (
		long, short = 9_900, 100
		shortTTL    = 15 // seconds
	)
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	longIDs := grant(t, client, long)
	ids := make([]clientv3.LeaseID, short)
	keeping, stopKeeping := context.WithCancel(t.Context())
	defer stopKeeping()
	each(t, short, func(ctx context.Context, i int) error {
		l, err := client.Grant(ctx, shortTTL)
		if err != nil {
			return err
		}
		ids[i] = l.ID
		if _, err := client.Put(ctx, fmt.Sprint("short/", i), "v", clientv3.WithLease(l.ID)); err != nil {
			return err
		}
		return keepAlive(keeping, client, l.ID)
	})
	want, err := leases(t.Context(), client)
	if err != nil || len(want) != long+short {
		t.Fatalf("%d leases, %v", len(want), err)
	}
	requireLeases(t, want, mirror)
	rev := etcd.Revision(t)
	mirror.WaitApplied(rev)

	lose(etcd, source)
	stopKeeping()
	awaitLoss(mirror)
	asked := time.Now()
	rec := mirror.Promote()
	// since is more than what a lease has used up that began in full.
	since := func() int64 { return int64(time.Since(asked)/time.Second) + 1 }
	if rec.Leases != long+short || rec.LeasesDefaulted != 0 || rec.Revision != rev {
		t.Errorf("record %+v", rec)
	}
	at := mirror.Client()
	kept, left := ids[:short/2], ids[short/2:]
	each(t, len(kept), func(ctx context.Context, i int) error { return keepAlive(t.Context(), at, kept[i]) })
	each(t, len(left), func(ctx context.Context, i int) error {
		ttl, err := at.TimeToLive(ctx, left[i])
		if used := since(); err == nil && (ttl.GrantedTTL != shortTTL || ttl.TTL > shortTTL || ttl.TTL < shortTTL-used) {
			err = fmt.Errorf("lease %x: %d of %d s are left, %d s after the promotion", left[i], ttl.TTL, ttl.GrantedTTL, used)
		}
		return err
	})
	// The first of the long ones have used up the most at the source.
	each(t, long/10, func(ctx context.Context, i int) error {
		ttl, err := at.TimeToLive(ctx, longIDs[i])
		if used := since(); err == nil && (ttl.GrantedTTL != 3600+int64(i) || ttl.TTL < ttl.GrantedTTL-used) {
			err = fmt.Errorf("lease %x: %d of %d s are left, %d s after the promotion", longIDs[i], ttl.TTL, ttl.GrantedTTL, used)
		}
		return err
	})
	now, err := leases(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	for id, told := range want {
		if now[id] != told && (since() < shortTTL || !strings.HasPrefix(told, fmt.Sprint(shortTTL, "s "))) {
			t.Fatalf("lease %x: %s, at the source it was %s", id, now[id], told)
		}
	}

	mirror.WaitStatus("without those that nobody keeps alive", time.Minute, func(heliograph.Status) bool {
		list, err := at.Leases(t.Context())
		return err == nil && len(list.Leases) == long+len(kept)
	})
	resp, err := at.Get(t.Context(), "short/", clientv3.WithPrefix())
	if err != nil || len(resp.Kvs) != len(kept) || resp.Header.Revision != rev+int64(len(left)) {
		t.Errorf("%d keys of short leases at revision %d, %v; want %d at %d", len(resp.Kvs), resp.Header.Revision, err, len(kept), rev+int64(len(left)))
	}
	for _, kv := range resp.Kvs {
		if ttl, err := at.TimeToLive(t.Context(), clientv3.LeaseID(kv.Lease)); err != nil || ttl.TTL <= 0 {
			t.Errorf("lease %x is kept alive: %+v, %v", kv.Lease, ttl, err)
		}
	}
	// The time of the long ones runs, too.
	each(t, 100, func(ctx context.Context, i int) error {
		ttl, err := at.TimeToLive(ctx, longIDs[i])
		if err == nil && ttl.TTL > ttl.GrantedTTL-shortTTL/2 {
			err = fmt.Errorf("lease %x: %d of %d s are left, though %d s have gone by", longIDs[i], ttl.TTL, ttl.GrantedTTL, since())
		}
		return err
	})
}

// keepAlive keeps a lease alive until ctx ends.
func keepAlive(ctx context.Context, client *clientv3.Client, id clientv3.LeaseID) error {
	answers, err := client.KeepAlive(ctx, id)
	if err != nil {
		return err
	}
	go func() { // ends with ctx or the client
		for range answers {
		}
	}()
	return nil
}

// waitTries waits until the node has failed so often to connect that it waits long
// for its next try.
func waitTries(n *heliotest.Node, line string) {
	const enough = 5
	before := strings.Count(n.Log(), line)
	n.WaitStatus("tried often", 3*time.Minute, func(heliograph.Status) bool {
		return strings.Count(n.Log(), line) >= before+enough
	})
}

// After an outage every node waits for its next try. Whoever wants to promote has
// them try at once, up the whole chain: an etcd that is back is not overlooked, and
// one that is gone stands in nobody's way.
func TestPromotionAsksNodesThatWait(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := faulttest.NewUDPRelay(t, source.Listen)
	middle := pki.Mirror("prod-eu", &heliotest.Node{Cluster: source.Cluster, Listen: relay.Addr()}, true)
	leaf := pki.Mirror("prod-asia", middle, false)
	mirrors := []*heliotest.Node{middle, leaf}
	rev := put(t, client, "a", 50)
	for _, n := range mirrors {
		n.WaitApplied(rev)
	}
	gone := func(why string) {
		t.Helper()
		for _, n := range mirrors {
			if p := n.Plan(); p.OriginAnswers || !p.OriginAsked || !strings.Contains(p.OriginWhy, why) || len(p.Refusals) > 0 {
				t.Errorf("%s: %+v, want that nothing answers: %q", n.Name(), p, why)
			}
		}
	}
	back := func(of *heliotest.Node) {
		t.Helper()
		s, err := of.Status()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s is %s: %s", of.Name(), s.Status, s.Why)
		_, err = leaf.TryPromote()
		if err == nil || !strings.Contains(err.Error(), "the etcd that it mirrors answers") {
			t.Fatalf("promoted while the etcd takes writes: %v", err)
		}
		rev = put(t, client, "b", 10)
		for _, n := range mirrors {
			n.WaitApplied(rev)
		}
	}

	etcd.Member(0).Kill()
	waitTries(source, `msg="etcd lost"`)
	gone("no answer from etcd at " + etcd.Endpoints()[0])
	etcd.Restart(t)
	rev = put(t, client, "c", 1)
	back(source)

	relay.Lose(true, true)
	waitTries(middle, `msg="source lost"`)
	gone("no answer from " + relay.Addr())
	relay.Lose(false, false)
	back(middle)

	lose(etcd, source)
	awaitLoss(leaf)
	rec := leaf.Promote()
	leaf.WaitPromoted()
	if rec.Revision != rev {
		t.Errorf("promoted at revision %d, want %d", rec.Revision, rev)
	}
}

// A source node that is diverged from its etcd asks it nothing, and that etcd may
// take writes: it takes force to promote its mirror, and nobody says that it does not
// answer.
func TestPromotionBesideASourceThatIsDiverged(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	rev := put(t, etcd.Client(t), "a", 20)
	mirror.WaitApplied(rev)
	etcd.Wipe(t)
	etcd.Restart(t)
	put(t, etcd.Client(t), "b", 40)
	source.WaitDiverged()

	unasked := func(why string) {
		t.Helper()
		if p := mirror.Plan(); p.OriginAnswers || p.OriginAsked || !strings.Contains(p.OriginWhy, why) {
			t.Errorf("plan %+v, want that nobody was asked: %q", p, why)
		}
		if said := heliotest.Run(t, "promote", "--plan", "--admin", mirror.Admin); !strings.Contains(said, "It may live: ") {
			t.Errorf("plan:\n%s", said)
		}
	}
	unasked("it is diverged, and asks nobody")
	requireRefused(t, mirror, heliograph.Degraded, "nobody knows whether the etcd that it mirrors answers")

	source.Resync()
	source.WaitFollowing()
	mirror.WaitDiverged()
	unasked("this node is diverged")
	requireRefused(t, mirror, heliograph.Diverged, "good copy")
	if rec := mirror.Promote("--force"); rec.Revision != rev {
		t.Errorf("promoted at revision %d, want %d", rec.Revision, rev)
	}
}
