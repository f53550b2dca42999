package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// poller asks for etcd's revision at an interval, which tells the head and that
// etcd is alive, and learns on the way that etcd was compacted: it reads as of
// the last compaction revision, which fails after a later one.
type poller struct {
	u    *Upstream
	c    *connection
	wake chan struct{} // capacity 1: head or compacted have changed

	head  atomic.Int64 // the newest revision that was heard of
	floor atomic.Int64 // the last known compaction revision
	stale atomic.Int64 // a floor that etcd was found compacted beyond; -1 if none
}

func newPoller(u *Upstream, c *connection) *poller {
	p := &poller{u: u, c: c, wake: make(chan struct{}, 1)}
	p.head.Store(c.head)
	p.floor.Store(u.compacted)
	p.stale.Store(-1)
	return p
}

// run polls until an error, which a poll that is not answered within
// Config.Silence is too.
func (p *poller) run(ctx context.Context) error {
	ticker := time.NewTicker(p.u.cfg.PollInterval)
	defer ticker.Stop()
	for {
		if err := p.once(ctx); err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

func (p *poller) once(ctx context.Context) error {
	applied := p.u.cfg.Replica.Applied()
	floor := p.floor.Load()
	head, err := p.c.revision(ctx, max(floor, 1))
	if errors.Is(err, rpctypes.ErrCompacted) {
		p.stale.Store(floor)
		p.notify()
		head, err = p.c.revision(ctx, 0)
	}
	if errors.Is(err, rpctypes.ErrFutureRev) { // below its own compaction revision
		head, err = p.c.revision(ctx, 0)
	}
	if err != nil {
		return err
	}
	if err := wentBack(head, applied); err != nil {
		return err
	}
	p.hear(head)
	p.u.cfg.Reporter.Heard(head, p.floor.Load())
	return nil
}

// hear tells of a revision that etcd has reached. It is not what the Reporter
// hears of: how long a response was on its way, only a poll can tell.
func (p *poller) hear(rev int64) {
	for {
		head := p.head.Load()
		if rev <= head {
			return
		}
		if p.head.CompareAndSwap(head, rev) {
			p.notify()
			return
		}
	}
}

// compacted reports whether the compaction revision is to be asked for. What a
// poll found of a floor that has been learned anew meanwhile does not count: the
// question would be a watcher that is never cancelled, and no other is asked
// while it is open.
func (p *poller) compacted() bool { return p.stale.Load() == p.floor.Load() }

// learned tells what it is.
func (p *poller) learned(rev int64) {
	p.floor.Store(rev)
	p.stale.Store(-1)
}

func (p *poller) notify() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
