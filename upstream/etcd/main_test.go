package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/store"
	"github.com/heliograph/heliograph/upstream/etcd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a condition may take on a busy machine.
const patience = 90 * time.Second

// rig is an upstream and the store that it fills.
type rig struct {
	tb     testing.TB
	cfg    etcd.Config
	store  *store.Store
	heard  *reporter
	up     *etcd.Upstream
	cancel context.CancelFunc
	result chan error // of Run
}

// newRig returns a rig with an empty store; it does not run yet.
func newRig(tb testing.TB, c *etcdtest.Cluster) *rig {
	tb.Helper()
	r := &rig{tb: tb, heard: &reporter{}}
	var err error
	r.store, err = store.Open(store.Config{Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		r.stop()
		if err := r.store.Close(); err != nil {
			tb.Errorf("close the store: %v", err)
		}
	})
	r.cfg = etcd.Config{
		Endpoints: c.Endpoints(),
		TLS:       c.TLS(),
		Cluster:   "prod-us",
		Database:  heliograph.DefaultDatabase,
		Replica:   r.store,
		Reporter:  r.heard,
		RetryBase: 50 * time.Millisecond,
		RetryCap:  500 * time.Millisecond,
	}
	return r
}

// start runs the upstream.
func (r *rig) start() {
	r.tb.Helper()
	up, err := etcd.New(r.cfg)
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- up.Run(ctx) }() // stop waits for it
	r.up, r.cancel, r.result = up, cancel, result
}

// stop ends Run and waits for it. A second call does nothing.
func (r *rig) stop() {
	r.tb.Helper()
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.result:
		if !errors.Is(err, context.Canceled) {
			r.tb.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		r.tb.Fatal("Run does not return")
	}
}

// diverged waits for Run to end by itself, and returns why.
func (r *rig) diverged() *heliograph.DivergedError {
	r.tb.Helper()
	select {
	case err := <-r.result:
		r.cancel()
		r.cancel = nil
		diverged, ok := errors.AsType[*heliograph.DivergedError](err)
		if !ok {
			r.tb.Fatalf("Run: %v: want a DivergedError", err)
		}
		return diverged
	case <-time.After(patience):
		r.tb.Fatal("Run does not return")
	}
	return nil
}

// reaches waits until the store has applied rev.
func (r *rig) reaches(rev int64) {
	r.tb.Helper()
	r.until("the revision applied", func() bool { return r.store.Applied() >= rev })
}

// until waits for a condition.
func (r *rig) until(what string, done func() bool) {
	r.tb.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			r.tb.Fatalf("%s: not in %s; applied %d, reported %s", what, patience, r.store.Applied(), r.heard)
		}
		<-tick.C
	}
}

// exact waits for the store to have all of the cluster, and compares the two.
func (r *rig) exact(c *etcdtest.Cluster) {
	r.tb.Helper()
	rev := c.Revision(r.tb)
	r.reaches(rev)
	want, compacted := c.HashKV(r.tb, rev)
	r.until("the compaction", func() bool { return r.store.Compacted() == max(compacted, 0) || compacted <= 0 })
	got, err := r.store.HashKV(r.tb.Context(), rev)
	if err != nil {
		r.tb.Fatal(err)
	}
	if got.Hash != want || got.CompactRevision != compacted {
		r.tb.Errorf("revision %d: hash %08x compacted at %d: want %08x at %d", rev, got.Hash, got.CompactRevision, want, compacted)
	}
}

// reporter remembers what it heard.
type reporter struct {
	mu        sync.Mutex
	addr      string // of the last Connected
	connected int
	snapshots int // Bootstrapping(0, 0)
	done      int64
	total     int64
	head      int64
	compacted int64
	applied   int64
	lost      []error
}

func (r *reporter) Connecting(string) {}

func (r *reporter) Connected(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addr, r.connected = addr, r.connected+1
}

func (r *reporter) Bootstrapping(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if total == 0 {
		r.snapshots++
	}
	r.done, r.total = done, total
}

func (r *reporter) Heard(head, compacted int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.head, r.compacted = head, compacted
}

func (r *reporter) Applied(rev int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = rev
}

func (r *reporter) Lost(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = append(r.lost, err)
}

// view returns a copy of what was heard.
func (r *reporter) view() *reporter {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &reporter{addr: r.addr, connected: r.connected, snapshots: r.snapshots, done: r.done, total: r.total,
		head: r.head, compacted: r.compacted, applied: r.applied, lost: append([]error(nil), r.lost...)}
}

// why returns the last reason why a connection was lost; nil if none was.
func (r *reporter) why() error {
	v := r.view()
	if len(v.lost) == 0 {
		return nil
	}
	return v.lost[len(v.lost)-1]
}

func (r *reporter) String() string {
	v := r.view()
	return fmt.Sprintf("addr %q, head %d, compacted %d, applied %d, snapshots %d (%d of %d bytes), lost %v",
		v.addr, v.head, v.compacted, v.applied, v.snapshots, v.done, v.total, v.lost)
}
