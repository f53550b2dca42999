package readapi_test

import (
	"testing"
	"time"

	"github.com/heliograph/heliograph/internal/difftest"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/readapi"
)

// newTwins returns an etcd and a server on a replica of it.
func newTwins(t *testing.T) *difftest.Twins {
	t.Helper()
	cluster := etcdtest.Start(t, etcdtest.Options{})
	tw := difftest.New(t, cluster)
	r := replicaOf(t, cluster.Save(t))
	c := cluster.Client(t)
	status, err := c.Status(call(t), c.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	r.origin.EtcdID = status.Header.ClusterId
	tw.Mirror = difftest.Dial(t, serve(t, r, func(c *readapi.Config) { c.ProgressInterval = time.Hour }).addr)
	return tw
}

func TestDifferentialRange(t *testing.T) { newTwins(t).CheckRange(t) }

func TestDifferentialTxn(t *testing.T) { newTwins(t).CheckTxn(t) }

func TestDifferentialWatch(t *testing.T) { newTwins(t).CheckWatch(t) }
