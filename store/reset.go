package store

import (
	"errors"
	"fmt"
	"os"

	"github.com/heliograph/heliograph"
)

// Reset drops what the store holds, durably, so that the next snapshot may be of
// any history. Views of KV answer with heliograph.ErrNotReady from then on, and
// their watchers get nothing more: what comes next is another view. An empty store
// stays as it is. While a snapshot is being received Reset fails; the caller stops
// the upstream first.
func (s *Store) Reset() error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if s.ctx.Err() != nil {
		return heliograph.ErrClosed
	}
	s.mu.Lock()
	busy, c := s.receiver != nil, s.cur.Load()
	s.mu.Unlock()
	switch {
	case busy:
		return errors.New("reset: a snapshot is being received")
	case c == nil:
		return nil
	}
	// A crash from here on leaves the old contents or none.
	if err := os.Remove(s.path(".db")); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		s.log.Error("removal of the database may not be durable", "database", s.cfg.Database, "err", err)
	}
	rev := c.applied.Load()

	s.mu.Lock()
	s.cur.Store(nil)
	s.kv, s.epoch, s.wishes, s.unsaved = nil, nil, nil, false
	s.mu.Unlock()
	c.epoch.end()
	close(c.gone)
	s.lessor.stage(nil)
	s.lessor.publish()
	s.auth.Store(nil)
	s.generation.Add(1)
	s.dirty.Store(0)
	s.wg.Go(func() { s.closeEpoch(c) })
	s.metrics.resets.Inc()
	s.log.Warn("contents dropped", "database", s.cfg.Database, "rev", rev, "origin", c.lineage.Load().Origin.String())
	s.notify()
	return nil
}

// closeEpoch closes what a Reset has dropped, when nobody uses it any more. Close
// does not wait for views: they must not be used then.
func (s *Store) closeEpoch(c *contents) {
	select {
	case <-c.epoch.idle:
	case <-s.ctx.Done():
	}
	c.users.Wait()
	if err := errors.Join(c.epoch.kv.Close(), c.be.Close()); err != nil {
		s.log.Error("dropped database did not close", "database", s.cfg.Database, "err", err)
	}
}
