package etcd

import (
	"context"
	"errors"
	"sync"
	"time"
)

// rereadAfter is the pace at which a read that failed is tried again.
const rereadAfter = 50 * time.Millisecond

// errNotRunning is why a read fails without a Run.
var errNotRunning = errors.New("not connected")

// readIndex answers reads of etcd's revision. Callers that come while a read is
// on its way share the next one: never that one, which may have been answered
// before they came.
type readIndex struct {
	timeout time.Duration
	wake    chan struct{} // capacity 1: there may be waiters and a connection

	mu      sync.Mutex
	waiters []waiter
	conn    *connection // nil while there is none
	err     error       // why there is none, or why the last read failed
	since   time.Time   // when the connection was lost; zero after Run
}

// waiter is a call of ReadIndex.
type waiter struct {
	ctx    context.Context // ends with the call
	answer chan<- reading  // of capacity 1
}

type reading struct {
	rev int64
	err error
}

func newReadIndex(timeout time.Duration) *readIndex {
	// A first connection is worth waiting for, also if Run has yet to be called.
	return &readIndex{timeout: timeout, wake: make(chan struct{}, 1), err: errNotRunning, since: time.Now()}
}

// ReadIndex returns etcd's current revision, read linearizably: every write
// that etcd acknowledged before the call is at or below it. Calls share reads.
// It waits for at most Config.Silence, also for a connection that is being
// made; the error is that of ctx or an *UnreachableError. Run must be running.
func (u *Upstream) ReadIndex(ctx context.Context) (int64, error) {
	return u.reads.read(ctx)
}

func (r *readIndex) read(parent context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(parent, r.timeout)
	defer cancel()
	answer := make(chan reading, 1)
	if err := r.enqueue(waiter{ctx, answer}); err != nil {
		return 0, err
	}
	select {
	case got := <-answer:
		return got.rev, got.err
	case <-ctx.Done():
		if parent.Err() != nil {
			return 0, context.Cause(parent)
		}
		return 0, r.unreachable()
	}
}

// enqueue fails at once when etcd has been gone for longer than a call waits.
func (r *readIndex) enqueue(w waiter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil && time.Since(r.since) > r.timeout {
		return &UnreachableError{Err: r.err}
	}
	r.waiters = append(r.waiters, w)
	r.wakeUp()
	return nil
}

func (r *readIndex) unreachable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		return &UnreachableError{Err: errors.New("no answer in time")}
	}
	return &UnreachableError{Err: r.err}
}

func (r *readIndex) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// connected says over which connection reads go from now on.
func (r *readIndex) connected(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.err = c, nil
	r.wakeUp()
}

// disconnected says that there is none, and why.
func (r *readIndex) disconnected(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		r.since = time.Now()
	}
	r.conn, r.err = nil, err
}

// run answers until ctx ends.
func (r *readIndex) run(ctx context.Context) error {
	r.mu.Lock()
	r.since = time.Now()
	r.mu.Unlock()
	defer r.stop()
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.wake:
		case <-pace.C:
		}
		c, waiters := r.begin()
		if c == nil || len(waiters) == 0 {
			continue // woken again by a connection, or by a waiter
		}
		rev, err := c.revision(ctx, 0)
		if err != nil {
			r.again(waiters, err)
			pace.Reset(rereadAfter)
			continue
		}
		for _, w := range waiters {
			w.answer <- reading{rev: rev}
		}
	}
}

// begin returns the connection, and those whom the read that now begins will
// answer; without a connection they go on waiting.
func (r *readIndex) begin() (*connection, []waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil, nil
	}
	waiters := r.waiters
	r.waiters = nil
	return r.conn, waiters
}

// again keeps those who still wait, for the next read: it may go to another
// member.
func (r *readIndex) again(waiters []waiter, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	for _, w := range waiters {
		if w.ctx.Err() == nil {
			r.waiters = append(r.waiters, w)
		}
	}
}

// stop answers those who still wait when Run returns.
func (r *readIndex) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || r.conn != nil {
		r.err = errNotRunning
	}
	r.conn, r.since = nil, time.Time{}
	for _, w := range r.waiters {
		w.answer <- reading{err: &UnreachableError{Err: r.err}}
	}
	r.waiters = nil
}
