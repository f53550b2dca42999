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

// A replica whose upstream is gone may be the only copy. answerWait is how long a
// diverged node's upstream, which has no connection, has to show that it is there;
// answerPause is how long a node that resyncs by itself waits before it asks again.
const (
	answerWait  = 5 * time.Second
	answerPause = 5 * time.Second
)

// ResyncOptions say how to resync.
type ResyncOptions struct {
	Force bool `json:"force"` // also what may be the only copy
}

// OnlyCopyError is what a resync is refused with. Nothing was changed.
type OnlyCopyError struct {
	Rev int64  // that the replica holds
	Why string // there is no upstream to copy from
}

func (e *OnlyCopyError) Error() string {
	return fmt.Sprintf("not resynced: what this node holds, up to revision %d, may be the only copy, since it has no upstream to copy from just now (%s): "+
		"helio promote makes an etcd of it, helio export saves it elsewhere; --force drops it all the same", e.Rev, e.Why)
}

// onlyCopy returns an *OnlyCopyError unless the replica is empty, or the upstream is
// there to fill it again.
func (m *mirroring) onlyCopy(ctx context.Context) error {
	rev, v := m.store.Applied(), m.tracker.View()
	if rev == 0 || v.Alive {
		return nil
	}
	why := v.Why
	if v.State == heliograph.Diverged {
		ctx, cancel := context.WithTimeout(ctx, answerWait)
		defer cancel()
		err := m.upstream.Answers(ctx)
		if err == nil {
			return nil
		}
		why = err.Error()
	}
	return &OnlyCopyError{Rev: rev, Why: why}
}

var errResync = errors.New("a resync was asked for")

// resync is a request to drop the replica.
type resync struct {
	done chan error // of capacity 1
}

// resync is [Node.Resync].
func (m *mirroring) resync(ctx context.Context) error {
	r := resync{done: make(chan error, 1)}
	select {
	case m.resyncs <- r:
	case <-m.ended:
		return errors.New("this node does not mirror at the moment")
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
func (m *mirroring) follow(ctx context.Context) error {
	var again time.Time // no resync by itself before
	for {
		asked, err := m.followOnce(ctx)
		diverged, ok := errors.AsType[*heliograph.DivergedError](err)
		switch {
		case ctx.Err() != nil:
			return nil
		case asked != nil:
		case !ok:
			return err
		default:
			diverged = m.ofMove(diverged)
			m.tracker.Diverged(diverged)
			m.cfg.Log.Error("diverged: following has stopped", "rev", m.store.Applied(), "err", diverged)
			if asked = m.awaitResync(ctx, again); asked == nil {
				if ctx.Err() != nil {
					return nil
				}
				again = time.Now().Add(resyncPause)
			}
		}
		if err := m.drop(asked); err != nil {
			return err
		}
	}
}

// followOnce follows until the upstream ends, the replica proves to be another
// than it should be, or a resync is asked for, which it returns.
func (m *mirroring) followOnce(ctx context.Context) (asked *resync, err error) {
	if err := m.store.Damaged(); err != nil {
		return nil, err
	}
	if d := m.store.Unequal(); d != nil {
		return nil, d
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() { ended <- m.upstream.Run(ctx) }() // every return below waits for it
	select {
	case err := <-ended:
		return nil, err
	case r := <-m.resyncs:
		cancel(errResync)
		_ = <-ended // what it says is that it was told to stop
		return &r, errResync
	case d := <-m.unequal:
		cancel(d)
		_ = <-ended // the same
		return nil, d
	}
}

// awaitResync waits until a diverged node is to resync: because somebody asks, or,
// if it is configured so, by itself, which returns nil. So does the end of ctx. One
// that was pointed at another cluster does not by itself, nor does one while its
// upstream is gone.
func (m *mirroring) awaitResync(ctx context.Context, again time.Time) *resync {
	var itself <-chan time.Time
	if m.cfg.OnDivergence == Resync && m.movedFrom() == "" {
		itself = time.After(time.Until(again))
	}
	for said := false; ; said = true {
		select {
		case r := <-m.resyncs:
			return &r
		case <-itself:
			err := m.onlyCopy(ctx)
			if err == nil {
				return nil
			}
			if !said {
				m.cfg.Log.Warn("no resync by itself before the upstream answers", "err", err)
			}
			itself = time.After(answerPause)
		case <-ctx.Done():
			return nil
		}
	}
}

// drop drops the replica; asked is who wants it, nil for the node itself.
func (m *mirroring) drop(asked *resync) error {
	m.cfg.Log.Warn("resync: the replica is dropped", "cluster", m.cfg.Cluster, "database", m.cfg.Database,
		"rev", m.store.Applied(), "origin", m.store.Origin().String(), "asked", asked != nil)
	was := m.store.Lineage()
	err := m.store.Reset()
	if err == nil {
		switch {
		case asked != nil:
			m.dropped = heliograph.Lineage{}
		case !was.Origin.IsZero():
			m.dropped = was
		}
		m.node.resynced.Inc()
		m.tracker.Reset()
		m.verifier.forget()
		select {
		case _ = <-m.unequal: // it was of what has been dropped
		default:
		}
	}
	if asked != nil {
		asked.done <- err
		return nil // who asked knows; following goes on with what is there
	}
	return err
}
