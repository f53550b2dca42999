package source

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
)

// spoolHold is how long a copy that nobody waited for is kept: a mirror that was
// told to come back does so within half a minute.
const spoolHold = 45 * time.Second

// errPreparing says that a copy takes longer than a hello may wait.
var errPreparing = errors.New("a snapshot is being prepared")

// spool has the replica copied for mirrors that must not wait long. The copy goes
// on without them, is shared by those who come meanwhile, and is kept until
// somebody took it.
type spool struct {
	replica Replica
	wait    time.Duration // longest that take blocks
	work    sync.WaitGroup

	mu      sync.Mutex
	current *copying // nil if no copy is under way or kept
}

// copying is one copy: first under way, then kept.
type copying struct {
	gen  int64         // of the replica, before the copy was begun
	done chan struct{} // closed when snap or err is set
	snap heliograph.Snapshot
	err  error
	over chan struct{} // closed when it need not be kept any more

	// Guarded by spool.mu.
	waiters int
	refs    int // uses of snap: one to keep it, and one for each who took it
}

// take returns a snapshot, which the caller releases. It blocks for at most
// s.wait and then returns errPreparing. life bounds the copy itself.
func (s *spool) take(ctx, life context.Context) (heliograph.Snapshot, error) {
	wait := time.NewTimer(s.wait)
	defer wait.Stop()
	c := s.enter(life)
	var err error
	select {
	case <-c.done:
		err = c.err
	case <-wait.C:
		err = errPreparing
	case <-ctx.Done():
		err = ctx.Err()
	}
	return s.exit(c, err)
}

func (s *spool) enter(life context.Context) *copying {
	s.mu.Lock()
	defer s.mu.Unlock()
	gen := s.replica.Generation()
	if s.current != nil && s.current.gen != gen {
		// Of contents that have been replaced, or dropped for another history.
		s.forgetLocked(s.current)
	}
	if s.current == nil {
		c := &copying{gen: gen, done: make(chan struct{}), over: make(chan struct{}), refs: 1}
		s.current = c
		s.work.Go(func() { s.copy(life, c) })
	}
	s.current.waiters++
	return s.current
}

// exit ends the wait for c, with a share of it unless err says otherwise. When
// the last who waited has one, it need not be kept.
func (s *spool) exit(c *copying, err error) (heliograph.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.waiters--
	if err != nil {
		return nil, err
	}
	c.refs++
	if c.waiters == 0 {
		s.forgetLocked(c)
	}
	return &share{Snapshot: c.snap, spool: s, of: c}, nil
}

// copy makes the copy and keeps it until those who waited took it, or for
// spoolHold.
func (s *spool) copy(life context.Context, c *copying) {
	c.snap, c.err = s.replica.Snapshot(life)
	close(c.done)
	if c.err == nil {
		hold := time.NewTimer(spoolHold)
		defer hold.Stop()
		select {
		case <-c.over:
		case <-hold.C:
		case <-life.Done():
		}
	}
	s.mu.Lock()
	s.forgetLocked(c)
	s.mu.Unlock()
	s.release(c)
}

// forgetLocked lets the next who asks begin another copy.
func (s *spool) forgetLocked(c *copying) {
	if s.current == c {
		s.current = nil
		close(c.over)
	}
}

// release gives up one use of a copy.
func (s *spool) release(c *copying) {
	s.mu.Lock()
	c.refs--
	last := c.refs == 0
	s.mu.Unlock()
	if last && c.snap != nil {
		c.snap.Release()
	}
}

// share is one mirror's use of a copy.
type share struct {
	heliograph.Snapshot
	spool *spool
	of    *copying
	once  sync.Once
}

// Release implements heliograph.Snapshot.
func (s *share) Release() { s.once.Do(func() { s.spool.release(s.of) }) }
