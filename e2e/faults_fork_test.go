package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/faulttest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// astray is a node that is started on the data of another, which ends, with another
// upstream.
func astray(t *testing.T, old *heliotest.Node, rev int64, make func(flags ...string) *heliotest.Node) *heliotest.Node {
	t.Helper()
	old.WaitStatus("durable", time.Minute, func(s heliograph.Status) bool { return s.DurableRevision >= rev })
	old.Kill()
	n := make("--data-dir", old.DataDir)
	n.DataDir = old.DataDir
	n.Start()
	return n
}

// Row 23: the network parts a mirror from its source, both ways; the mirror is
// promoted, and both sides take writes. The new cluster is another one by its id, and
// its record says up to where the source was known and that what came then is not;
// once the network is whole again neither side follows the other, nor do the nodes
// and mirrors of either.
func TestRow23PromotedWhileTheOldSourceWrites(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := faulttest.NewUDPRelay(t, source.Listen)
	far := &heliotest.Node{Cluster: source.Cluster, Listen: relay.Addr()}
	mirror, witness := pki.Mirror("prod-eu", far, false), pki.Mirror("prod-eu", far, false)
	near := pki.Mirror("prod-asia", source, false)
	nodes := []*heliotest.Node{mirror, witness, near}
	for _, n := range nodes {
		n.WaitFollowing()
	}

	load := etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Workers: 2, Seed: seed(t), Deletes: true, Txns: true})
	written := func(n int64) {
		t.Helper()
		source.WaitStatus("written", time.Minute, func(heliograph.Status) bool { return load.Written() >= n })
	}
	written(500)
	relay.Lose(true, true)
	mirror.WaitStatus("without its source", time.Minute, func(s heliograph.Status) bool {
		return (s.Status == heliograph.Degraded || s.Status == heliograph.Disconnected) && len(mirror.Plan().Refusals) == 0
	})
	written(1000)
	if plan := mirror.Plan(); plan.OriginAnswers || !plan.Bump.Needed || plan.Bump.Why == "" {
		t.Errorf("plan: %+v", plan)
	}
	rec := mirror.Promote()
	mirror.WaitPromoted()
	written(load.Written() + 500) // the old one goes on, and does not know
	load.Stop()
	oldHead := put(t, client, "old", 10)
	t.Logf("promoted at revision %d, known were %d, the old one is at %d", rec.Revision, rec.LastKnownRevision, oldHead)

	at := mirror.Client()
	resp, err := client.Get(t.Context(), "old0")
	if err != nil {
		t.Fatal(err)
	}
	if uint64(rec.EtcdID) == resp.Header.ClusterId || rec.EtcdID == 0 {
		t.Errorf("the new cluster has the id %s, the old one %x", rec.EtcdID, resp.Header.ClusterId)
	}
	if rec.LastKnownRevision < rec.Revision || rec.MissingRevisions != rec.LastKnownRevision-rec.Revision || rec.LastKnownRevision >= oldHead {
		t.Errorf("record %+v", rec)
	}
	if said := heliotest.Run(t, "promote", "--plan", "--admin", mirror.Admin); !strings.Contains(said, "what the source has written") {
		t.Errorf("it does not say that an unknown tail may be lost:\n%s", said)
	}
	requireSame(t, mirror, rec.Revision, etcd)
	if got := mirror.Put(at, "new", "1"); got != rec.First() {
		t.Errorf("the first write has revision %d, want %d", got, rec.First())
	}
	newHead := put(t, at, "new", 400)

	before := strings.Count(source.Log(), "mirror accepted")
	relay.Lose(false, false)
	witness.WaitApplied(oldHead) // by the way that mirror had
	near.WaitApplied(oldHead)
	if n := strings.Count(source.Log(), "mirror accepted"); n != before+1 {
		t.Errorf("the source node has accepted %d mirrors since, want the one that is left", n-before)
	}
	if s := mirror.WaitPromoted(); s.AppliedRevision != newHead {
		t.Errorf("the promoted node is at revision %d, want %d: %s", s.AppliedRevision, newHead, s.Why)
	}

	heir := pki.Source("prod-eu", []string{mirror.Clients})
	young := pki.Mirror("prod-oz", heir, false)
	young.WaitApplied(newHead)

	lost := astray(t, near, oldHead, func(flags ...string) *heliotest.Node { return pki.NewMirror("prod-asia", heir, false, flags...) })
	requireDiverged(t, lost, oldHead, fmt.Sprintf("left that at revision %d", rec.Revision))
	young = astray(t, young, newHead, func(flags ...string) *heliotest.Node { return pki.NewMirror("prod-oz", source, false, flags...) })
	requireDiverged(t, young, newHead, "the mirror holds prod-eu/default@")
	heir = astray(t, heir, newHead, func(flags ...string) *heliotest.Node { return pki.NewSource("prod-eu", etcd.Endpoints(), flags...) })
	requireDiverged(t, heir, newHead, "etcd cluster")
	source = astray(t, source, oldHead, func(flags ...string) *heliotest.Node {
		return pki.NewSource("prod-us", []string{mirror.Clients}, flags...)
	})
	requireDiverged(t, source, oldHead, "etcd cluster")

	// An operator decides: the node of the old one follows the new one from now on.
	source.Resync()
	source.WaitApplied(newHead)
	want, compacted := mirror.HashKV(newHead)
	if got, at := source.HashKV(newHead); got != want || at != compacted {
		t.Errorf("after a resync: HashKV %08x, compacted at %d; want %08x at %d", got, at, want, compacted)
	}
}
