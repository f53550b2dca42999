package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// waits reports whether a mirror says that its source has not followed the promotion.
func waits(s heliograph.Status) bool {
	return strings.Contains(s.Why, "has not followed the promotion of prod-eu yet")
}

// requireWaits waits until the mirror waits for its source, and fails if it is
// diverged or has dropped anything.
func requireWaits(t *testing.T, n *heliotest.Node, rev int64) {
	t.Helper()
	s := n.WaitStatus("waiting for its source", time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Diverged || s.AppliedRevision < rev || waits(s)
	})
	if !waits(s) || s.AppliedRevision != rev {
		t.Fatalf("%s is %s at revision %d, want it to wait at %d: %s", n.Name(), s.Status, s.AppliedRevision, rev, s.Why)
	}
}

// Two relays of one cluster are pointed at the promoted one after the other. Their
// mirror goes over with the first, and waits when only the second is there: it does
// not go back, whatever it is told to do on divergence.
func TestForkOneRelayAfterTheOther(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	heir := pki.Mirror("prod-eu", source, false)
	first, second := pki.Mirror("prod-ap", source, true), pki.Mirror("prod-ap", source, true)
	both := &heliotest.Node{Cluster: "prod-ap", Listen: first.Listen + "," + second.Listen}
	leaves := []*heliotest.Node{pki.Mirror("branch", both, false), pki.Mirror("branch", both, false, "--on-divergence", "resync")}
	rev := put(t, etcd.Client(t), "a", 50)
	for _, n := range append([]*heliotest.Node{heir, first, second}, leaves...) {
		n.WaitApplied(rev)
	}
	lose(etcd, source)
	awaitLoss(heir)
	record := heir.Promote()
	heir.WaitPromoted()
	beside := pki.Source("prod-eu", []string{heir.Clients})

	first.Point(beside)
	first.Start()
	second.Kill()
	client := heir.Client()
	rev = put(t, client, "b", 100)
	for _, n := range leaves {
		n.WaitApplied(rev)
	}
	second.Start()
	first.Kill()
	for _, n := range leaves {
		requireWaits(t, n, rev)
	}
	first.Start()
	rev = put(t, client, "c", 10)
	requireHash(t, heir, rev, leaves...)
	first.Kill()
	for _, n := range leaves {
		requireWaits(t, n, rev)
	}
	second.Point(beside)
	second.Start()
	requireHash(t, heir, put(t, client, "d", 10), leaves...)
	origin := heliograph.Origin{Cluster: "prod-eu", Database: "default", EtcdID: uint64(record.EtcdID)}.String()
	for _, n := range leaves {
		requireWithout(t, n, origin, "prod-ap")
	}
}

// A relay's data directory is restored from a backup that was made before the relay
// went over to the promoted cluster: its mirror waits until it has gone over again, and
// does not even drop a damaged replica for what the relay has.
func TestForkRelayFromABackup(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	heir, relay := pki.Mirror("prod-eu", source, false), pki.Mirror("prod-ap", source, true)
	leaf := pki.Mirror("branch", relay, false, "--on-divergence", "resync")
	if _, err := etcd.Client(t).Put(t.Context(), "m", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, etcd.Client(t), "a", 50)
	for _, n := range []*heliotest.Node{heir, leaf} {
		n.WaitApplied(rev)
	}
	lose(etcd, source)
	awaitLoss(heir)
	stopAt(t, rev, relay)
	backup := filepath.Join(t.TempDir(), "backup")
	copyDir(t, relay.DataDir, backup)
	heir.Promote()
	heir.WaitPromoted()
	beside := pki.Source("prod-eu", []string{heir.Clients})
	relay.Point(beside)
	relay.Start()
	client := heir.Client()
	rev = put(t, client, "b", 100)
	leaf.WaitApplied(rev)

	stopAt(t, rev, relay, beside)
	if err := os.RemoveAll(relay.DataDir); err != nil {
		t.Fatal(err)
	}
	copyDir(t, backup, relay.DataDir)
	relay.Start()
	requireWaits(t, leaf, rev)
	stopAt(t, rev, leaf)
	flip(t, leaf, marker)
	leaf.Start()
	leaf.WaitStatus("diverged", time.Minute, func(s heliograph.Status) bool { return s.Status == heliograph.Diverged && s.AppliedRevision == rev })
	beside.Start()
	requireHash(t, heir, put(t, client, "c", 10), leaf)
}
