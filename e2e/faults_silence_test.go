package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// Row 16: what the mirror sends is lost for good, and what the source sends arrives.
// The mirror says so, is not ready, and goes on by itself when the network is whole.
func TestRow16HeardAndNotHeard(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror, relay := behind(t, pki, "prod-eu", source)
	mirror.Start()
	mirror.WaitApplied(put(t, client, "a", 100))
	mirror.WaitFollowing()
	if err := mirror.Ready(); err != nil {
		t.Fatal(err)
	}

	relay.Lose(true, false)
	began := time.Now()
	s := mirror.WaitStatus("unheard", time.Minute, func(s heliograph.Status) bool { return s.Status != heliograph.Following })
	t.Logf("after %v: %s: %s", time.Since(began), s.Status, s.Why)
	if s.Status != heliograph.Degraded || mirror.Ready() == nil {
		t.Errorf("status %+v, ready: %v", s, mirror.Ready())
	}
	if !strings.Contains(mirror.Log(), "has heard nothing from us") {
		t.Error("why is not said")
	}
	rev := put(t, client, "b", 100)
	mirror.WaitStatus("in vain", time.Minute, func(s heliograph.Status) bool { return strings.Contains(s.Why, "no answer from") })

	relay.Lose(false, false)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	waitIn(mirror, heliograph.Following)
	if n := mirror.Snapshots(); n != 1 {
		t.Errorf("%d snapshots, want one: it goes on where it was", n)
	}
}
