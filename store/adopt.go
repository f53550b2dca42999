package store

import (
	"fmt"

	"github.com/heliograph/heliograph"
)

// Adopt makes the contents part of another history: of the one that left theirs at
// a fork which they have not passed, so that all that they hold is in both. What is
// applied from then on is of to.Origin. It is durable on return, and a crash leaves
// the old lineage or the new one, both of which are true of the contents. Those who
// follow this store learn of it by [Store.Generation].
//
// to.Forks need not reach back further than the fork at which to left the contents'
// history. If no fork leads there, or the contents have passed it, the error is a
// *heliograph.DivergedError and nothing is changed. To adopt the origin that the
// contents have already does nothing. Like Apply it is one goroutine's.
func (s *Store) Adopt(to heliograph.Lineage) error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	c := s.cur.Load()
	switch {
	case s.ctx.Err() != nil:
		return heliograph.ErrClosed
	case c == nil:
		return heliograph.ErrNotReady
	}
	have, applied := *c.lineage.Load(), c.applied.Load()
	forks, diverged := to.Admit(have.Origin.String(), applied)
	if diverged != nil {
		return diverged
	}
	if len(forks) == 0 {
		return nil
	}
	now := have.Adopt(to.Origin, forks)
	list, err := encodeForks(now.Forks)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", to.Origin, err)
	}
	tx := c.be.BatchTx()
	tx.LockOutsideApply()
	putLineage(tx, now.Origin, list)
	tx.Unlock()
	c.loose.Add(1)
	s.commit(c)
	c.lineage.Store(&now)
	s.generation.Add(1)
	s.metrics.adoptions.Inc()
	s.log.Info("history of a promoted cluster adopted", "database", s.cfg.Database, "rev", applied,
		"fork", heliograph.Left(forks).Revision, "was", have.Origin.String(), "origin", now.Origin.String())
	s.notify()
	return nil
}

// leads decides whether a snapshot with that lineage may replace the contents, and
// returns the revision up to which both are known to be one; 0 if they are of one
// origin, or if there are no contents. The caller holds applyMu.
func (s *Store) leads(to heliograph.Lineage) (left int64, err error) {
	have := s.Origin()
	if have.IsZero() {
		return 0, nil
	}
	forks, diverged := to.Admit(have.String(), s.Applied())
	if diverged != nil {
		return 0, diverged
	}
	if len(forks) == 0 {
		return 0, nil
	}
	return heliograph.Left(forks).Revision, nil
}
