package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

const (
	promoteKills = 50
	promoteLanes = 2 // mirrors that are killed side by side: most of the time is waiting
)

// A mirror is killed with -9 at random moments of `helio promote`, from its start to
// after its end. Whenever that is, a restart mirrors on, with nothing lost, or is the
// promoted etcd at the revision that it had.
func TestPromotionKilled(t *testing.T) {
	kills := promoteKills
	if testing.Short() {
		kills = 9
	}
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 300)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	source.WaitFollowing()
	random := seed(t)
	var left, mirrored, promoted atomic.Int64
	left.Store(int64(kills))
	t.Run("lanes", func(t *testing.T) {
		for lane := range promoteLanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				v := newVictim(t, pki.With(t, heliotest.Binary(t)), etcd, source, rand.New(rand.NewPCG(random, uint64(lane))))
				for left.Add(-1) >= 0 {
					if v.round() {
						promoted.Add(1)
					} else {
						mirrored.Add(1)
					}
				}
			})
		}
	})
	t.Logf("killed %d times: %d mirrored on, %d were promoted", kills, mirrored.Load(), promoted.Load())
	if !testing.Short() && (mirrored.Load() == 0 || promoted.Load() == 0) {
		t.Error("all kills were on one side of the commit: they prove little")
	}
}

// victim is a mirror that is promoted and killed again and again.
type victim struct {
	t       *testing.T
	etcd    *etcdtest.Cluster
	mirror  *heliotest.Node
	replica string // a copy of its data directory from before any promotion
	rng     *rand.Rand
	span    time.Duration // how long an undisturbed promotion takes
	edge    time.Duration // about how long one takes until its commit point
	puts    int
}

func newVictim(t *testing.T, pki *heliotest.PKI, etcd *etcdtest.Cluster, source *heliotest.Node, rng *rand.Rand) *victim {
	t.Helper()
	v := &victim{t: t, etcd: etcd, rng: rng, replica: filepath.Join(t.TempDir(), "replica")}
	v.mirror = pki.Mirror("prod-eu", source, false)
	v.mirror.WaitFollowing()
	if code, _ := v.mirror.Stop(20 * time.Second); code != 0 {
		t.Fatalf("the mirror ends with %d", code)
	}
	v.copyTree(v.mirror.DataDir, v.replica)
	v.mirror.Start()
	v.mirror.WaitFollowing()
	start := time.Now()
	v.mirror.Promote("--force")
	v.span = time.Since(start)
	t.Logf("a promotion takes %s", v.span)
	v.edge = v.span / 10
	v.again()
	return v
}

// again makes a mirror of what was promoted.
func (v *victim) again() {
	v.t.Helper()
	v.mirror.Kill()
	if err := os.RemoveAll(v.mirror.DataDir); err != nil {
		v.t.Fatal(err)
	}
	v.copyTree(v.replica, v.mirror.DataDir)
	v.mirror.Start()
}

// round promotes, kills, starts again, and reports whether it was promoted.
func (v *victim) round() bool {
	v.t.Helper()
	rev := v.write()
	v.mirror.WaitApplied(rev)
	audits := v.audits()
	// Most of a promotion is etcd's start: half of the kills are aimed at the time
	// around the commit point, wherever that is on a machine of this speed.
	near := v.rng.IntN(2) == 0
	after := time.Duration(1.2 * v.rng.Float64() * float64(v.span))
	if near {
		after = time.Duration(2 * v.rng.Float64() * float64(v.edge))
	}
	var asking sync.WaitGroup
	var said error
	asking.Go(func() { _, said = v.mirror.TryPromote("--force") })
	timer := time.NewTimer(after) // the moment itself, not a wait for something
	<-timer.C
	v.mirror.Kill()
	asking.Wait()
	v.mirror.Start()
	s := v.mirror.WaitStatus("mirroring or promoted", time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Following || s.Status == heliograph.Promoted && v.mirror.Ready() == nil
	})
	v.t.Logf("killed after %s: %s at %d (asked: %v)", after, s.Status, s.AppliedRevision, said)
	if near && s.Status == heliograph.Promoted {
		v.edge = v.edge * 3 / 4
	} else if near {
		v.edge = v.edge*5/4 + time.Millisecond
	}
	if s.Status == heliograph.Promoted {
		// Two, if the kill came between the line and the note of it.
		if lines := v.audits() - audits; lines != 1 && lines != 2 {
			v.t.Errorf("promoted, with %d lines of audit", lines)
		}
		v.requirePromoted(s)
		v.again()
		return true
	}
	heliotest.RequireEqual(v.t, v.etcd, v.write(), v.mirror)
	if said == nil {
		v.t.Errorf("helio promote ended with 0, and the node mirrors: %+v", s)
	}
	return false
}

// audits returns how many promotions the log has the outcome of.
func (v *victim) audits() int {
	return strings.Count(v.mirror.Log(), "msg=audit action=promote ")
}

// requirePromoted fails unless the promoted etcd is what the source was at the
// fork, and takes writes.
func (v *victim) requirePromoted(s heliograph.Status) {
	v.t.Helper()
	rev := s.AppliedRevision
	client := v.mirror.Client()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	hash, compacted, err := etcdtest.HashKV(ctx, client, v.mirror.Clients, rev)
	if err != nil {
		v.t.Fatal(err)
	}
	if want, wantCompacted := v.etcd.HashKV(v.t, rev); hash != want || compacted != wantCompacted {
		v.t.Fatalf("HashKV %08x at revision %d, compacted at %d; etcd has %08x, compacted at %d", hash, rev, compacted, want, wantCompacted)
	}
	if got := v.mirror.Put(client, "after", "1"); got != rev+1 {
		v.t.Fatalf("the first write has revision %d, want %d", got, rev+1)
	}
}

// write makes a revision at the source.
func (v *victim) write() int64 {
	v.t.Helper()
	v.puts++
	client := v.etcd.Client(v.t)
	defer client.Close()
	return put(v.t, client, fmt.Sprintf("%s/%d/", v.t.Name(), v.puts), 1)
}

func (v *victim) copyTree(from, to string) {
	v.t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		v.t.Fatal(err)
	}
}
