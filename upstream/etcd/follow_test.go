package etcd_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
)

// The writer runs before the snapshot, during it, and after it: a gap between
// snapshot and stream, or a revision applied twice, changes the hash.
func TestExactUnderAWriterAtFullSpeed(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	load := etcdtest.StartLoad(t, c.Client(t), etcdtest.LoadOptions{Deletes: true, Txns: true, Leases: true})
	r := newRig(t, c)
	r.until("a first thousand", func() bool { return load.Written() > 1_000 })
	r.start()
	r.until("the snapshot", func() bool { return r.store.Applied() > 0 })
	begun := load.Written()
	r.until("twenty thousand more", func() bool { return load.Written() > begun+20_000 })
	load.Stop()
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 || len(v.lost) != 0 {
		t.Errorf("reported %s: want one snapshot and no loss", r.heard)
	}
	if got := r.store.Origin(); got.Cluster != "prod-us" || got.EtcdID == 0 {
		t.Errorf("origin %s", got)
	}
	if !strings.HasPrefix(r.up.Version(), "3.") {
		t.Errorf("version %q", r.up.Version())
	}
}

func TestCatchesUpFromHistory(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	etcdtest.Fill(t, client, 1_000)
	r := newRig(t, c)
	r.start()
	r.exact(c)
	r.stop()

	rev := etcdtest.Fill(t, client, 40_000)
	behind := rev - r.store.Applied()
	began := time.Now()
	r.start()
	r.reaches(rev)
	took := time.Since(began)
	t.Logf("%d revisions in %s: %.0f /s", behind, took, float64(behind)/took.Seconds())
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 {
		t.Errorf("reported %s: want no second snapshot", r.heard)
	}
}

func TestCatchesUpWhileTheWriterGoesOn(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	etcdtest.Fill(t, client, 100)
	r.start()
	r.exact(c)
	r.stop()
	load := etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Txns: true})
	r.until("thirty thousand", func() bool { return load.Written() > 30_000 })
	r.start()
	for range 5 {
		rev, err := r.up.ReadIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		r.reaches(rev)
		t.Logf("revision %d reached after %s", rev, time.Since(began))
	}
	load.Stop()
	r.exact(c)
}

// A mirror that keeps up is never far behind, however long the writer goes on.
func TestStaysLive(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	reg := prometheus.NewRegistry()
	r := newRig(t, c)
	r.cfg.Metrics = reg
	load := etcdtest.StartLoad(t, c.Client(t), etcdtest.LoadOptions{})
	r.start()
	r.until("live", func() bool { return r.store.Applied() > 0 })
	var worst time.Duration
	for began := load.Written(); load.Written() < began+50_000; {
		rev, err := r.up.ReadIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		asked := time.Now()
		r.reaches(rev)
		worst = max(worst, time.Since(asked))
	}
	load.Stop()
	r.exact(c)
	t.Logf("worst wait for a revision %s, fell behind %v times", worst, gathered(t, reg)["heliograph_etcd_watch_fell_behind_total"])
	if worst > 5*time.Second {
		t.Errorf("a revision took %s to arrive", worst)
	}
	if v := gathered(t, reg); v["heliograph_etcd_revisions_total"] < 50_000 || v["heliograph_etcd_snapshots_total"] != 1 ||
		v["heliograph_etcd_records_total"] < v["heliograph_etcd_revisions_total"] || v["heliograph_etcd_snapshot_bytes_total"] == 0 ||
		v["heliograph_etcd_watchers"] == 0 || v["heliograph_etcd_read_seconds"] == 0 {
		t.Errorf("metrics %v", v)
	}
}

// Tiles that hold more than was expected of them must not hold it in memory.
func TestHoldsNoMoreThanItsBudget(t *testing.T) {
	const budget, valueBytes = 4 << 20, 64 << 10
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	etcdtest.Fill(t, client, 100)
	reg := prometheus.NewRegistry()
	r.start()
	r.exact(c)
	r.stop()
	value := strings.Repeat("v", valueBytes)
	for i := range 2_500 {
		if i%3 == 0 {
			value = value[1:] + "w"
		}
		if _, err := client.Put(t.Context(), "big", value); err != nil {
			t.Fatal(err)
		}
	}
	r.cfg.HeldBytes, r.cfg.Metrics = budget, reg
	r.start()
	rev := c.Revision(t)
	var most float64
	r.until("the revision applied", func() bool {
		most = max(most, gathered(t, reg)["heliograph_etcd_held_bytes"])
		return r.store.Applied() >= rev
	})
	r.exact(c)
	// A fragment, which is at most about 2 MiB, may come on top.
	t.Logf("most held: %.1f MiB", most/(1<<20))
	if most > budget+4<<20 {
		t.Errorf("%.0f bytes held: the budget is %d", most, budget)
	}
}

func TestFollowsCompaction(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	etcdtest.Fill(t, client, 1_000)
	r := newRig(t, c)
	r.cfg.PollInterval = 20 * time.Millisecond
	r.start()
	r.exact(c)
	for range 3 {
		rev := etcdtest.Fill(t, client, 1_000)
		if _, err := client.Compact(t.Context(), rev-200, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		r.until("the compaction", func() bool { return r.store.Compacted() == rev-200 })
		r.exact(c)
		r.until("the report", func() bool { return r.heard.view().compacted == rev-200 })
	}
	if v := r.heard.view(); v.snapshots != 1 || len(v.lost) != 0 {
		t.Errorf("reported %s: want one snapshot and no loss", r.heard)
	}
}

func TestTakesANewSnapshotWhenHistoryIsGone(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	etcdtest.Fill(t, client, 1_000)
	r := newRig(t, c)
	r.start()
	r.exact(c)
	r.stop()
	rev := etcdtest.Fill(t, client, 2_000)
	if _, err := client.Delete(t.Context(), "fill/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 2 {
		t.Errorf("reported %s: want a second snapshot", r.heard)
	}
	etcdtest.Fill(t, client, 500)
	r.exact(c)
}

// checker sees every batch before the store does.
type checker struct {
	heliograph.Replica
	check func(heliograph.Batch)
}

func (c checker) Apply(b heliograph.Batch) error {
	c.check(b)
	return c.Replica.Apply(b)
}

func TestNeverSplitsARevision(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	const ops = 128 // as many as etcd allows
	value := strings.Repeat("v", 9_000)
	txn := func() int64 {
		var puts []clientv3.Op
		for i := range ops {
			puts = append(puts, clientv3.OpPut("k/"+string(rune('0'+i)), value))
		}
		resp, err := client.Txn(t.Context()).Then(puts...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	first := txn()
	r := newRig(t, c)
	batches := 0
	r.cfg.Replica = checker{r.store, func(b heliograph.Batch) {
		batches++
		if len(b.Records) != ops {
			t.Errorf("revision %d has %d records: want %d", b.Rev, len(b.Records), ops)
		}
	}}
	r.start()
	r.reaches(first)
	for range 20 {
		txn() // live: about 1 MB each
	}
	r.exact(c)
	r.stop()
	for range 40 {
		txn() // read from history, in fragments
	}
	r.start()
	r.exact(c)
	r.stop()
	if batches != 60 {
		t.Errorf("%d batches: want 60", batches)
	}
}

// putMany puts 50,000 small keys, of which all begin with the prefix.
func putMany(t *testing.T, client *clientv3.Client) (prefix string) {
	t.Helper()
	const keys, perTxn = 50_000, 100
	prefix = strings.Repeat("long/", 20)
	for i := 0; i < keys; i += perTxn {
		var puts []clientv3.Op
		for j := range perTxn {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%05d", prefix, i+j), "v"))
		}
		if _, err := client.Txn(t.Context()).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return prefix
}

// etcd takes minutes to cut such a revision into fragments.
func TestAppliesARevisionOfManyRecords(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	putMany(t, client)
	r.start()
	r.exact(c)
	deleteAll := func(prefix string) {
		t.Helper()
		resp, err := client.Delete(t.Context(), prefix, clientv3.WithPrefix())
		if err != nil || resp.Deleted != 50_000 {
			t.Fatalf("%v, %v", resp, err)
		}
	}
	prefix := putMany(t, client)
	deleteAll(prefix) // live
	r.exact(c)
	r.stop()
	deleteAll(putMany(t, client)) // from history
	r.start()
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 || len(v.lost) != 0 {
		t.Errorf("reported %s: want one snapshot and no loss", r.heard)
	}
}

// A revision that is over the limit of a response is asked for in fragments;
// if etcd cannot make these in time, a snapshot has it.
func TestTakesASnapshotOfARevisionThatIsTooBig(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	prefix := putMany(t, client)
	r := newRig(t, c)
	r.cfg.HeldBytes = 1 << 20 // of which the limit is made
	r.cfg.Silence = time.Second
	r.start()
	r.exact(c)
	if _, err := client.Delete(t.Context(), prefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 2 || len(v.lost) < 2 {
		t.Errorf("reported %s: want the losses and a second snapshot", r.heard)
	}
}

func TestReadIndex(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	r.cfg.Silence = time.Second
	r.start()
	const callers = 100
	results := make(chan error, callers)
	for range callers {
		go func() {
			for range 10 {
				put, err := client.Put(t.Context(), "k", "v")
				if err != nil {
					results <- err
					return
				}
				rev, err := r.up.ReadIndex(t.Context())
				if err == nil && rev < put.Header.Revision {
					t.Errorf("read index %d after a write at %d", rev, put.Header.Revision)
				}
				if err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range callers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}

	c.Member(0).Kill()
	_, err := r.up.ReadIndex(t.Context())
	if err == nil || !strings.Contains(err.Error(), "etcd is unreachable") {
		t.Errorf("read index of a dead etcd: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.up.ReadIndex(ctx); err == nil {
		t.Error("read index with a context that has ended")
	}
	c.Restart(t)
	r.until("a read index", func() bool { _, err := r.up.ReadIndex(t.Context()); return err == nil })
	r.stop()
	if _, err := r.up.ReadIndex(t.Context()); err == nil {
		t.Error("read index after Run")
	}
}

// gathered returns the value of every metric; of a histogram, its count.
func gathered(tb testing.TB, reg *prometheus.Registry) map[string]float64 {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		m := f.GetMetric()[0]
		values[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return values
}
