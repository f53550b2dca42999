package e2e_test

import (
	"testing"

	"github.com/heliograph/heliograph/internal/difftest"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// A mirror of a mirror answers thousands of random requests as etcd does.
func TestDifferential(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	tw := difftest.New(t, etcd)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := pki.Mirror("prod-eu", source, true)
	leaf := pki.Mirror("prod-asia", relay, false)
	leaf.WaitFollowing()
	heliotest.RequireEqual(t, etcd, tw.Rev, leaf)
	tw.Mirror = difftest.Dial(t, leaf.Clients)
	t.Run("range", tw.CheckRange)
	t.Run("txn", tw.CheckTxn)
	t.Run("watch", tw.CheckWatch)
}
