package store

import (
	"errors"
	"time"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// Compact tells the store that its upstream's compaction revision is rev. It
// returns at once. The store compacts at exactly that revision, so that hashes
// can be compared, when it has applied it, when Config.History has passed, and
// when no snapshot in use needs what would go. When several are due, the last
// one stands for all.
func (s *Store) Compact(rev int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cur.Load()
	if s.closed || c == nil || rev <= c.compacted.Load() {
		return
	}
	w, news := s.wishes.with(rev, time.Now())
	if news {
		s.wishes, s.unsaved = w, true
		s.wakeKeeper()
	}
}

func (s *Store) wakeKeeper() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// runKeeper compacts what is due and drops spools that nobody came back for.
func (s *Store) runKeeper() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.kick:
		case <-t.C:
		}
		now := time.Now()
		next := s.expireSpools(now)
		if ripe := s.compactDue(now); next.IsZero() || !ripe.IsZero() && ripe.Before(next) {
			next = ripe
		}
		if next.IsZero() {
			t.Stop()
		} else {
			t.Reset(time.Until(next))
		}
	}
}

// compactDue compacts at the last revision that is due, writes down what is
// still pending, and returns when the next is due, zero if that is not a
// question of time.
func (s *Store) compactDue(now time.Time) time.Time {
	// The contents must not be replaced between choosing and compacting.
	s.applyMu.Lock()
	defer s.applyMu.Unlock()

	s.mu.Lock()
	c := s.cur.Load()
	if c == nil || s.closed {
		s.mu.Unlock()
		return time.Time{}
	}
	limit := c.applied.Load()
	for _, sp := range s.spools {
		if sp.of == c {
			limit = min(limit, sp.pin)
		}
	}
	if s.held || c.damaged != nil {
		limit = 0 // what is compacted is not compared any more when the file is opened
	}
	rev, next := s.wishes.due(now, s.cfg.History, limit)
	s.mu.Unlock()
	var floor tally
	if rev > 0 {
		floor = s.floorAt(rev)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return time.Time{}
	}
	if rev > 0 {
		s.wishes, s.unsaved = s.wishes.after(rev), true
		c.floor.Store(max(c.floor.Load(), rev))
	}
	save, pending := s.unsaved, s.wishes
	s.unsaved = false
	s.mu.Unlock()

	// A crash may take back a wish; the upstream will tell again.
	if save {
		writeWishes(c.be, pending)
	}
	if rev > 0 {
		c.digests.compact(floor)
		s.compact(c, rev)
	}
	return next
}

func (s *Store) compact(c *contents, rev int64) {
	_, err := s.kv.Compact(traceutil.TODO(), rev)
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
		s.log.Error("compaction failed", "database", s.cfg.Database, "rev", rev, "err", err)
		return
	}
	c.compacted.Store(max(c.compacted.Load(), rev))
	s.metrics.compactions.Inc()
	s.log.Debug("compacted", "database", s.cfg.Database, "rev", rev)
	s.notify()
}
