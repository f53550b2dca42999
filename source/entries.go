package source

import (
	"context"
	"errors"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
)

// sendBulk sends the snapshot, if there is one, and then entries until the
// session ends.
func (m *mirror) sendBulk(ctx context.Context) error {
	if m.snapshot != nil {
		if err := m.sendSnapshot(ctx, m.snapshot); err != nil {
			return err
		}
		m.mu.Lock()
		m.progress.SnapshotSent()
		m.mu.Unlock()
	}
	b, err := m.openBulk(ctx, "entries")
	if err != nil {
		return err
	}
	e := &entries{
		mirror: m,
		bulk:   b,
		feed:   m.srv.feed,
		reader: reader{replica: m.srv.cfg.Replica, encoded: m.srv.metrics.encodedByMirror},
	}
	defer e.leave()
	for {
		if err := e.step(ctx); err != nil {
			return err
		}
	}
}

// entries sends a mirror what its progress asks for: frames of the feed when
// they begin at its cursor, frames of its own when it is behind them.
type entries struct {
	*mirror
	bulk   *bulk
	feed   *feed
	reader reader
	run    int64 // of the feed that the mirror is a member of; 0 is none
}

func (e *entries) leave() {
	e.feed.leave(e.run)
	e.run = 0
}

// step sends something or waits for a reason to.
func (e *entries) step(ctx context.Context) error {
	replica := e.srv.cfg.Replica
	// Channels before what they tell of.
	changed := replica.Changed()
	at := e.cursor()
	v := e.feed.look(at, e.gen, e.run)
	if err := e.checkGeneration(); err != nil {
		return err
	}
	floor, limit := replica.Floor(), session.Cursor{Rev: replica.Applied() + 1}
	if v.member {
		limit = v.end // what is not encoded yet is the feed's to encode
	}
	if v.frame.data != nil {
		floor = 0 // the frame is history that compaction did not reach
	}
	switch e.next(limit, floor) {
	case session.Gone:
		return end(heliograph.CodeHistoryGone, "revision %d has been compacted here, at %d: connect again for a snapshot", at.Rev, floor)
	case session.Blocked:
		e.leave()
		return e.awaitAck(ctx)
	case session.Wait:
		if !v.member {
			e.run = e.feed.join(at, e.gen)
			return nil
		}
		return await(ctx, v.changed)
	}
	if v.frame.data != nil {
		return e.send(ctx, v.frame)
	}
	if v.behind {
		e.leave()
		e.catchUp()
	}
	n, err := e.reader.read(at, v.stop)
	switch {
	case errors.Is(err, heliograph.ErrCompacted):
		return end(heliograph.CodeHistoryGone, "revision %d has been compacted here: connect again for a snapshot", at.Rev)
	case err != nil:
		if err := e.checkGeneration(); err != nil {
			return err
		}
		return e.unreadable("history", err)
	case n == 0:
		return await(ctx, changed)
	}
	// What was read is of this generation only if it still is the generation.
	if err := e.checkGeneration(); err != nil {
		return err
	}
	for i := range n {
		if err := e.send(ctx, e.reader.encode(i)); err != nil {
			return err
		}
	}
	return nil
}

func await(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send sends one frame. It counts as sent before it is: the acknowledgement may
// come before the last write returns.
func (e *entries) send(ctx context.Context, f frame) error {
	e.mu.Lock()
	err := e.progress.Sending(f.from, f.to, int64(len(f.data)), e.srv.nowMS())
	patience := e.patienceLocked()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return e.bulk.write(ctx, f.data, patience)
}

// awaitAck waits until the mirror has applied more.
func (e *entries) awaitAck(ctx context.Context) error {
	e.mu.Lock()
	patience := e.patienceLocked()
	e.mu.Unlock()
	stalled := time.NewTimer(patience)
	defer stalled.Stop()
	select {
	case <-e.acked:
		return nil
	case <-stalled.C:
		return end(heliograph.CodeTimeout, "the mirror acknowledged nothing for %v with a full window", patience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// patienceLocked returns how long a mirror may go without progress: longer while
// it installs its snapshot, and in proportion for a revision that is larger than
// the window, which it applies as a whole.
func (m *mirror) patienceLocked() time.Duration {
	if !m.progress.Installed() {
		return m.srv.cfg.InstallTimeout
	}
	windows := m.progress.InFlight() / m.srv.cfg.WindowBytes
	return m.srv.cfg.Stall * time.Duration(max(1, windows))
}
