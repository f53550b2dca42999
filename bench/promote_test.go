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

// promotion is one way to a promotion, with the columns of it and of an etcd that is
// started on the data that it has made.
type promotion struct {
	promoted, etcd string
	lost           bool // the source is killed first; else it answers, and the promotion is forced
}

var promotions = []promotion{
	{"source lost", "etcd on its data", true},
	{"--force", "etcd on its data, too", false},
}

// lostFor is how long a source has been lost when its mirror is promoted.
const lostFor = 20 * time.Second

var (
	writeSeconds = row{"time until the first write is accepted, s", 2}
	writeRatio   = row{"times what etcd takes in the same round", 2}
	answered     = row{"time until helio promote answers, s", 2}
	promotePeak  = row{"peak memory, MiB", 0}
)

// BenchmarkPromotion promotes a mirror that follows, or whose source is lost, and
// measures from the start of `helio promote` until a writer, who tries all the time,
// has his first write accepted. Beside it an etcd is started on the data directory
// that this has made, with the same addresses; its time begins with the start of the
// process.
func BenchmarkPromotion(b *testing.B) {
	o := readOptions(b)
	var columns []string
	for _, p := range promotions {
		columns = append(columns, p.promoted, p.etcd)
	}
	t := newTable("Promotion", columns, []row{writeSeconds, writeRatio, answered, promotePeak})
	facts := conditions(b, o)
	inCell(b, func(outer *cell) {
		etcd := startEtcd(outer, o)
		revision := fill(outer, etcd.Client(outer), o.keys)
		pki := heliotest.NewPKI(outer)
		source := pki.Source("prod-us", etcd.Endpoints())
		var variants []variant
		for _, p := range promotions {
			variants = append(variants, variant{p.promoted, func(c *cell) { p.run(c, t, pki, source, revision) }})
		}
		rounds(b, o, variants)
	})
	for _, p := range promotions {
		t.addRatios(writeRatio, p.promoted, writeSeconds, p.promoted, p.etcd, 1)
	}
	t.note("Source lost: it was killed %v before helio promote, which asks for it once more. --force: it answers, and the mirror is promoted all the same.", lostFor)
	show(b, facts, t)
	lost := promotions[0]
	b.ReportMetric(t.get(writeSeconds, lost.promoted).median(), "promote-s")
	b.ReportMetric(t.get(writeSeconds, lost.etcd).median(), "etcd-s")
	b.ReportMetric(t.get(writeRatio, lost.promoted).median(), "times-etcd")
}

func (p promotion) run(c *cell, t *table, pki *heliotest.PKI, source *heliotest.Node, revision int64) {
	c.Helper()
	source.WaitFollowing()
	mirror := pki.With(c, heliotest.Binary(c)).Mirror("prod-eu", source, false)
	if !c.until(copyWait, 20*time.Millisecond, func() bool {
		s, err := mirror.Status()
		return err == nil && s.Status == heliograph.Following && s.DurableRevision >= revision
	}) {
		c.Fatal("the mirror does not follow")
	}
	args := []string{"--force"}
	if p.lost {
		source.Kill()
		defer source.Start()
		c.hold(lostFor)
		args = nil
	}
	start := time.Now()
	var asking sync.WaitGroup
	var rec promote.Record
	var err error
	var took time.Duration
	asking.Go(func() {
		rec, err = mirror.TryPromote(args...)
		took = time.Since(start)
	})
	written := firstWrite(c, mirror.Clients)
	t.add(writeSeconds, p.promoted, time.Since(start).Seconds())
	asking.Wait()
	if err != nil || written != revision+1 || rec.Revision != revision {
		c.Fatalf("promoted at revision %d, first write at %d, want %d and %d: %v", rec.Revision, written, revision, revision+1, err)
	}
	t.add(answered, p.promoted, took.Seconds())
	t.add(promotePeak, p.promoted, float64(usageOf(c, mirror.PID()).peakBytes)/(1<<20))
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
	t.add(writeSeconds, p.etcd, time.Since(start).Seconds())
	t.add(promotePeak, p.etcd, float64(usageOf(c, etcd.PID()).peakBytes)/(1<<20))
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
