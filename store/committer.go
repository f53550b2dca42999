package store

import (
	"errors"
	"time"

	"github.com/heliograph/heliograph"
)

// Commit makes durable all that was applied before the call and returns the
// durable revision, 0 before the first snapshot. It blocks for an fsync, which
// it shares with others who wait.
func (s *Store) Commit() (int64, error) {
	c, err := s.acquire()
	if errors.Is(err, heliograph.ErrNotReady) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer c.users.Done()
	return s.commit(c), nil
}

// commit returns the durable revision, which is at least what was applied when
// it was called; leases and the like that were written before are durable, too.
// Whoever gets commitMu commits for all who wait for it.
func (s *Store) commit(c *contents) int64 {
	want, loose := c.applied.Load(), c.loose.Load()
	if d := c.durable.Load(); d >= want && c.looseDurable.Load() >= loose {
		return d
	}
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	if d := c.durable.Load(); d >= want && c.looseDurable.Load() >= loose {
		return d
	}
	// Read before the commit: what is written while it runs is in the next.
	rev, loose := c.applied.Load(), c.loose.Load()
	s.dirty.Store(0)
	start := time.Now()
	c.be.ForceCommit()
	s.metrics.commits.Observe(time.Since(start).Seconds())
	c.durable.Store(rev)
	c.looseDurable.Store(loose)
	s.notify()
	return rev
}

// runCommitter makes durable what was applied, every CommitInterval.
func (s *Store) runCommitter() {
	t := time.NewTicker(s.cfg.CommitInterval)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		before := s.Durable()
		if d, err := s.Commit(); err == nil && d > before {
			s.wakeKeeper() // a compaction may have waited for it
		}
	}
}
