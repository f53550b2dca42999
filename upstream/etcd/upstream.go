package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
)

// usefulAfter is how long a connection must have lasted to count as a success
// though nothing was applied.
const usefulAfter = 30 * time.Second

// Upstream is an etcd cluster that a replica follows. Its methods are safe for
// concurrent use.
type Upstream struct {
	cfg     Config
	metrics *metrics
	reads   *readIndex
	version atomic.Pointer[string]
	running atomic.Bool

	authRevision atomic.Uint64 // as last told by etcd

	// What follows is for the goroutine of Run alone.

	compacted int64 // etcd's compaction revision as far as it is known
	snapshot  bool  // the next connection begins with a snapshot
	gap       int64 // the revision that etcd left out on the last connection; 0 if none
	tooBig    int   // connections since the last revision that ended because a response was too big
	silent    int   // connections in a row that ended because no events came

	// What is being learned cannot be at the moment, which has been logged: of
	// the goroutine that learns it, of which there is one at a time.

	leaseTrouble, authTrouble bool
}

// New returns an Upstream. It starts nothing.
func New(cfg Config) (*Upstream, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	return &Upstream{cfg: cfg, metrics: m, reads: newReadIndex(cfg.Silence, len(cfg.Endpoints))}, nil
}

// Version returns the version of the member that was last connected to, such as
// "3.5.21"; empty before the first connection.
func (u *Upstream) Version() string {
	if v := u.version.Load(); v != nil {
		return *v
	}
	return ""
}

// Run follows etcd until ctx ends, which it returns the cause of, or until the
// histories prove different: then the error is a *heliograph.DivergedError.
// All else is reported and tried again. It may run once at a time.
func (u *Upstream) Run(ctx context.Context) error {
	if !u.running.CompareAndSwap(false, true) {
		return errors.New("the upstream is running already")
	}
	defer u.running.Store(false)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return u.reads.run(ctx) })
	group.Go(func() error { return u.run(ctx) })
	return group.Wait()
}

func (u *Upstream) run(ctx context.Context) error {
	// What an earlier Run has learned may be of another history: the replica can
	// have been dropped since.
	u.compacted, u.snapshot, u.gap, u.tooBig, u.silent = 0, false, 0, 0, 0
	pause := backoff{base: u.cfg.RetryBase, cap: u.cfg.RetryCap, endpoints: len(u.cfg.Endpoints)}
	for i := 0; ; i++ {
		endpoint := u.cfg.Endpoints[i%len(u.cfg.Endpoints)]
		began, applied := time.Now(), u.cfg.Replica.Applied()
		u.cfg.Reporter.Connecting(endpoint)
		u.reads.trying()
		err := u.once(ctx, endpoint)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		u.metrics.lost.Inc()
		u.reads.disconnected(err)
		u.cfg.Reporter.Lost(err)
		u.denied(err)
		if diverged, ok := errors.AsType[*heliograph.DivergedError](err); ok {
			return diverged
		}
		u.cfg.Log.Warn("etcd lost", "cluster", u.cfg.Cluster, "peer", endpoint, "rev", u.cfg.Replica.Applied(), "err", err)
		u.learn(err)
		if u.cfg.Replica.Applied() > applied || time.Since(began) > usefulAfter {
			pause.reset()
		}
		if errors.Is(err, errStaleToken) && pause.failures == 0 {
			i-- // nothing is wrong with that member
		}
		// Where access control has just gone on, a new connection logs in.
		_, denied := errors.AsType[*DeniedError](err)
		if err := pause.wait(ctx, denied && pause.failures > 0, u.reads.retry); err != nil {
			return err
		}
	}
}

// learn decides from the end of a connection how the next one begins.
func (u *Upstream) learn(err error) {
	if needsSnapshot(err) {
		u.snapshot = true
	}
	if errors.Is(err, errResponseTooBig) {
		u.tooBig++
	}
	if _, ok := errors.AsType[*silentError](err); ok {
		u.silent++
		// Cutting many small events into fragments takes etcd for ever.
		u.snapshot = u.snapshot || u.tooBig > 0
	}
	gap, ok := errors.AsType[*gapError](err)
	switch {
	case !ok:
		u.gap = 0
	case gap.want == u.gap:
		u.snapshot = true // etcd has left it out twice: only a snapshot has it
	default:
		u.gap = gap.want
	}
}

// once connects to a member and follows it until something ends that.
func (u *Upstream) once(ctx context.Context, endpoint string) error {
	c, err := u.dial(ctx, endpoint)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.check(); err != nil {
		return err
	}
	u.askAuth(ctx, c) // before anybody takes the replica for one that follows
	u.cfg.Reporter.Connected(endpoint)
	u.reads.connected(c)
	u.cfg.Log.Info("etcd connected", "cluster", u.cfg.Cluster, "peer", endpoint, "rev", c.head)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return u.watchAuth(ctx, c) })
	group.Go(func() error { return u.fill(ctx, c) })
	return group.Wait()
}

// fill brings the replica what it lacks, and what is new from then on.
func (u *Upstream) fill(ctx context.Context, c *connection) error {
	if err := u.compare(ctx, c); err != nil {
		return err
	}
	if u.snapshot || u.cfg.Replica.Applied() == 0 {
		if err := u.bootstrap(ctx, c); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
		u.snapshot, u.gap, u.silent, u.tooBig = false, 0, 0, 0
	}
	u.compacted = max(u.compacted, u.cfg.Replica.Compacted())
	return newFollower(u, c).run(ctx)
}
