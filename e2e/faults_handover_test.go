package e2e_test

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// Row 7: with the writer at full speed, the mirror or its source node is killed again
// and again where the snapshot ends and the stream begins. Nothing between the two is
// missing.
func TestRow07KilledWhereTheSnapshotEnds(t *testing.T) {
	t.Parallel()
	rounds := 8
	if testing.Short() {
		rounds = 4
	}
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 10_000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	source.WaitFollowing()
	load := fullLoad(t, client)
	rng := rand.New(rand.NewPCG(seed(t), 7))
	mirror := pki.NewMirror("prod-eu", source, false)
	var edge time.Duration // how long a mirror took from its start to the snapshot's end
	before, after, had := 0, 0, 0
	for i := range rounds {
		if err := os.RemoveAll(mirror.DataDir); err != nil {
			t.Fatal(err)
		}
		mirror.Start()
		start := time.Now()
		if i%4 < 2 { // the moment after the snapshot's end, or some moment before
			mirror.WaitStatus("snapshot", time.Minute, func(heliograph.Status) bool { return mirror.Snapshots() > had })
			edge = time.Since(start)
		} else {
			timer := time.NewTimer(time.Duration((0.3 + 0.6*rng.Float64()) * float64(edge)))
			<-timer.C
		}
		victim := []*heliotest.Node{mirror, source}[i%2]
		victim.Kill()
		moment := time.Since(start)
		if n := mirror.Snapshots(); n == had {
			before++
		} else {
			after++
		}
		victim.Start()
		rev := put(t, client, "round", 10)
		heliotest.RequireEqual(t, etcd, rev, source, mirror)
		t.Logf("%s was killed %v after the mirror's start, %d of %d kills before the snapshot's end", victim.Name(), moment, before, before+after)
		mirror.Kill()
		had = mirror.Snapshots()
	}
	if before == 0 || after == 0 {
		t.Errorf("%d kills before the snapshot's end and %d after it: too few to prove anything", before, after)
	}
	if n := strings.Count(mirror.Log(), "diverged"); n > 0 {
		t.Errorf("diverged is said %d times", n)
	}
	stop(t, etcd, load)
}
