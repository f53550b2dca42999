package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
)

// OnDivergence says what a node does when it finds itself diverged.
type OnDivergence string

// The choices.
const (
	Stop   OnDivergence = "stop"   // stays as it is until a person decides
	Resync OnDivergence = "resync" // drops its replica and bootstraps anew
)

// ParseOnDivergence reads a choice.
func ParseOnDivergence(s string) (OnDivergence, error) {
	switch d := OnDivergence(s); d {
	case Stop, Resync:
		return d, nil
	}
	return "", fmt.Errorf("%.40q: want stop or resync", s)
}

// resyncPause is how far apart a node resyncs by itself: what diverges again at
// once is not mended by copying it once more.
const resyncPause = 10 * time.Minute

var errResync = errors.New("a resync was asked for")

// resync is a request to drop the replica.
type resync struct {
	done chan error // of capacity 1
}

// Resync drops what the replica holds and bootstraps anew from the upstream,
// whatever history that has. It returns when the replica is dropped; readers get
// errors until the new snapshot is there. Run must be running.
func (n *Node) Resync(ctx context.Context) error {
	r := resync{done: make(chan error, 1)}
	select {
	case n.resyncs <- r:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// follow runs the upstream. A divergence ends following, not the node: its status
// has to be read, and its data may be all that is left. A resync begins it anew.
func (n *Node) follow(ctx context.Context) error {
	var again time.Time // no resync by itself before
	for {
		asked, err := n.followOnce(ctx)
		diverged, ok := errors.AsType[*heliograph.DivergedError](err)
		switch {
		case ctx.Err() != nil:
			return nil
		case asked != nil:
		case !ok:
			return err
		default:
			n.tracker.Diverged(diverged)
			n.cfg.Log.Error("diverged: following has stopped", "rev", n.store.Applied(), "err", diverged)
			if asked = n.awaitResync(ctx, again); asked == nil {
				if ctx.Err() != nil {
					return nil
				}
				again = time.Now().Add(resyncPause)
			}
		}
		if err := n.drop(asked); err != nil {
			return err
		}
	}
}

// followOnce follows until the upstream ends, the replica proves to be another
// than it should be, or a resync is asked for, which it returns.
func (n *Node) followOnce(ctx context.Context) (asked *resync, err error) {
	if err := n.store.Damaged(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() { ended <- n.upstream.Run(ctx) }() // every return below waits for it
	select {
	case err := <-ended:
		return nil, err
	case r := <-n.resyncs:
		cancel(errResync)
		_ = <-ended // what it says is that it was told to stop
		return &r, errResync
	case d := <-n.unequal:
		cancel(d)
		_ = <-ended // the same
		return nil, d
	}
}

// awaitResync waits until a diverged node is to resync: because somebody asks, or,
// if it is configured so, by itself, which returns nil. So does the end of ctx.
func (n *Node) awaitResync(ctx context.Context, again time.Time) *resync {
	var itself <-chan time.Time
	if n.cfg.OnDivergence == Resync {
		t := time.NewTimer(time.Until(again))
		defer t.Stop()
		itself = t.C
	}
	select {
	case r := <-n.resyncs:
		return &r
	case <-itself:
		return nil
	case <-ctx.Done():
		return nil
	}
}

// drop drops the replica; asked is who wants it, nil for the node itself.
func (n *Node) drop(asked *resync) error {
	n.cfg.Log.Warn("resync: the replica is dropped", "cluster", n.cfg.Cluster, "database", n.cfg.Database,
		"rev", n.store.Applied(), "origin", n.store.Origin().String(), "asked", asked != nil)
	err := n.store.Reset()
	if err == nil {
		n.resynced.Inc()
		n.tracker.Reset()
		n.verifier.forget()
		select {
		case _ = <-n.unequal: // it was of what has been dropped
		default:
		}
	}
	if asked != nil {
		asked.done <- err
		return nil // who asked knows; following goes on with what is there
	}
	return err
}
