package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/internal/proctest"
	"github.com/heliograph/heliograph/promote"
)

// The columns and rows of a promotion.
const (
	byPromote = "helio promote"
	byEtcd    = "etcd, started on that data"
)

var (
	writeSeconds = row{"time until the first write is accepted, s", 2}
	writeRatio   = row{"times what etcd takes in the same round", 2}
	answered     = row{"time until helio promote answers, s", 2}
	promotePeak  = row{"peak memory, MiB", 0}
)

// BenchmarkPromotion promotes a mirror that follows, and measures from the start of
// `helio promote` until a writer, who tries all the time, has his first write
// accepted. Beside it an etcd is started on the data directory that this has made,
// with the same addresses; its time begins with the start of the process.
func BenchmarkPromotion(b *testing.B) {
	o := readOptions(b)
	t := newTable("Promotion", []string{byPromote, byEtcd}, []row{writeSeconds, writeRatio, answered, promotePeak})
	facts := conditions(b, o)
	inCell(b, func(outer *cell) {
		etcd := startEtcd(outer, o)
		revision := fill(outer, etcd.Client(outer), o.keys)
		pki := heliotest.NewPKI(outer)
		source := pki.Source("prod-us", etcd.Endpoints())
		source.WaitFollowing()
		rounds(b, o, []variant{{byPromote, func(c *cell) { promoteOnce(c, t, pki, source, revision) }}})
	})
	t.addRatios(writeRatio, byPromote, writeSeconds, byPromote, byEtcd, 1)
	t.note("The source answers, and --force promotes all the same: where it is silent, a second is spent on asking it, and without --force as long as dialling everybody takes, 5 s for each address.")
	show(b, facts, t)
	b.ReportMetric(t.get(writeSeconds, byPromote).median(), "promote-s")
	b.ReportMetric(t.get(writeSeconds, byEtcd).median(), "etcd-s")
	b.ReportMetric(t.get(writeRatio, byPromote).median(), "times-etcd")
}

func promoteOnce(c *cell, t *table, pki *heliotest.PKI, source *heliotest.Node, revision int64) {
	c.Helper()
	mirror := pki.With(c, heliotest.Binary(c)).Mirror("prod-eu", source, false)
	if !c.until(copyWait, 20*time.Millisecond, func() bool {
		s, err := mirror.Status()
		return err == nil && s.Status == heliograph.Following && s.DurableRevision >= revision
	}) {
		c.Fatal("the mirror does not follow")
	}
	start := time.Now()
	var asking sync.WaitGroup
	var rec promote.Record
	var err error
	var took time.Duration
	asking.Go(func() {
		rec, err = mirror.TryPromote("--force")
		took = time.Since(start)
	})
	written := firstWrite(c, mirror.Clients)
	t.add(writeSeconds, byPromote, time.Since(start).Seconds())
	asking.Wait()
	if err != nil || written != revision+1 || rec.Revision != revision {
		c.Fatalf("promoted at revision %d, first write at %d, want %d and %d: %v", rec.Revision, written, revision, revision+1, err)
	}
	t.add(answered, byPromote, took.Seconds())
	t.add(promotePeak, byPromote, float64(usageOf(c, mirror.PID()).peakBytes)/(1<<20))
	if code, _ := mirror.Stop(startWait); code != 0 {
		c.Fatalf("the promoted node ends with %d", code)
	}

	etcd := proctest.New(c, "etcd", filepath.Join(c.TempDir(), "etcd.log"), etcdtest.Binary(c, "etcd"),
		"--name", rec.Name, "--data-dir", promote.EtcdDir(mirror.DataDir, rec.Database),
		"--listen-client-urls", mirror.Clients, "--advertise-client-urls", mirror.Clients,
		"--listen-peer-urls", mirror.Peer, "--initial-advertise-peer-urls", mirror.Peer,
		"--initial-cluster", rec.Name+"="+mirror.Peer, fmt.Sprintf("--quota-backend-bytes=%d", int64(quotaBytes)))
	start = time.Now()
	etcd.Start()
	if got := firstWrite(c, mirror.Clients); got != written+1 {
		c.Fatalf("etcd's first write has revision %d, want %d", got, written+1)
	}
	t.add(writeSeconds, byEtcd, time.Since(start).Seconds())
	t.add(promotePeak, byEtcd, float64(usageOf(c, etcd.PID()).peakBytes)/(1<<20))
}

// firstWrite tries to write until that is accepted, and returns the revision.
func firstWrite(c *cell, url string) int64 {
	c.Helper()
	// Who has been refused a connection tries again at once, not a second later.
	const again = 2 * time.Millisecond
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: again, Multiplier: 1, MaxDelay: again}, MinConnectTimeout: startWait,
		}),
	}})
	if err != nil {
		c.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.ctx, copyWait)
	defer cancel()
	var revision int64
	if !c.until(copyWait, again, func() bool {
		put, err := client.Put(ctx, "bench/first", "1")
		if err != nil {
			return false
		}
		revision = put.Header.Revision
		return true
	}) {
		c.Fatalf("%s accepts no write", url)
	}
	return revision
}
