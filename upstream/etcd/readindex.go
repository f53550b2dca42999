package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
)

// rereadAfter is the pace at which a read that failed is tried again.
const rereadAfter = 50 * time.Millisecond

// maxWaiters bounds the calls that wait for an answer.
const maxWaiters = 1024

// errNotRunning is why a read fails without a Run.
var errNotRunning = errors.New("not connected")

// readIndex answers reads of etcd's revision. Callers that come while a read is
// on its way share the next one: never that one, which may have been answered
// before they came.
//
// Without a connection they have the next one tried at once, and wait until there
// is one, or until every endpoint has been tried after they came.
type readIndex struct {
	timeout   time.Duration
	endpoints int
	wake      chan struct{} // capacity 1: there may be waiters and a connection
	retry     chan struct{} // capacity 1: there are waiters and no connection

	mu      sync.Mutex
	waiters []waiter
	conn    *connection // nil while there is none
	err     error       // why there is none, or why the last read failed
	tries   int         // to connect, that have begun
	stopped bool        // Run has returned
}

// waiter is a call of ReadIndex.
type waiter struct {
	ctx    context.Context // ends with the call
	answer chan<- reading  // of capacity 1
	after  int             // tries that had begun when it came: they say nothing
	left   int             // later ones that have to fail until it is told so
	there  error           // of one of these, if something was there
}

type reading struct {
	rev int64
	err error
}

func newReadIndex(timeout time.Duration, endpoints int) *readIndex {
	// A first connection is worth waiting for, also if Run has yet to be called.
	return &readIndex{
		timeout: timeout, endpoints: endpoints, err: errNotRunning,
		wake: make(chan struct{}, 1), retry: make(chan struct{}, 1),
	}
}

// ReadIndex returns etcd's current revision, read linearizably: every write
// that etcd acknowledged before the call is at or below it. Calls share reads.
// Without a connection it has one tried at once, though not more often than once
// a second, and waits until every endpoint has been tried, or ctx ends. The error
// is that of ctx or an *UnreachableError, which holds a
// *heliograph.UnansweredError if nothing has answered. Run must be running.
func (u *Upstream) ReadIndex(ctx context.Context) (int64, error) {
	return u.reads.read(ctx)
}

func (r *readIndex) read(parent context.Context) (int64, error) {
	// Long enough for a try that is under way, and one of each endpoint.
	limit := time.Duration(r.endpoints+1) * (r.timeout + retryEvery)
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	answer := make(chan reading, 1)
	if err := r.enqueue(waiter{ctx: ctx, answer: answer}); err != nil {
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

func (r *readIndex) enqueue(w waiter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return &UnreachableError{Err: r.err}
	}
	if len(r.waiters) >= maxWaiters {
		r.waiters = slices.DeleteFunc(r.waiters, func(w waiter) bool { return w.ctx.Err() != nil })
	}
	if len(r.waiters) >= maxWaiters {
		return &UnreachableError{Err: fmt.Errorf("%d reads wait for an answer already", maxWaiters)}
	}
	w.after, w.left = r.tries, r.endpoints
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

// wakeUp wakes who can do something about the waiters.
func (r *readIndex) wakeUp() {
	who := r.wake
	if r.conn == nil {
		who = r.retry
	}
	select {
	case who <- struct{}{}:
	default:
	}
}

// trying says that a connection is being tried.
func (r *readIndex) trying() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
}

// connected says over which connection reads go from now on.
func (r *readIndex) connected(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.err = c, nil
	select {
	case _ = <-r.retry: // it has been done
	default:
	}
	r.wakeUp()
}

// disconnected says that the connection that was tried has ended, and why.
func (r *readIndex) disconnected(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.err = nil, err
	r.waiters = slices.DeleteFunc(r.waiters, func(w waiter) bool { return w.ctx.Err() != nil })
	for i := range r.waiters {
		w := &r.waiters[i]
		if w.after == r.tries {
			continue
		}
		w.left--
		if w.there == nil && !gone(err) {
			w.there = err
		}
		switch {
		case w.left > 0:
		case w.there != nil:
			w.answer <- reading{err: &UnreachableError{Err: w.there}}
		default:
			w.answer <- reading{err: &UnreachableError{Err: &heliograph.UnansweredError{Err: err}}}
		}
	}
	r.waiters = slices.DeleteFunc(r.waiters, func(w waiter) bool { return w.left == 0 })
	if len(r.waiters) > 0 {
		r.wakeUp()
	}
}

// run answers until ctx ends.
func (r *readIndex) run(ctx context.Context) error {
	r.mu.Lock()
	r.stopped = false
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
	if r.conn != nil {
		r.err = err // else it is known why there is none
	}
	for _, w := range waiters {
		if w.ctx.Err() == nil {
			r.waiters = append(r.waiters, w)
		}
	}
	if r.conn == nil && len(r.waiters) > 0 {
		r.wakeUp()
	}
}

// stop answers those who still wait when Run returns.
func (r *readIndex) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || r.conn != nil {
		r.err = errNotRunning
	}
	r.conn, r.stopped = nil, true
	for _, w := range r.waiters {
		w.answer <- reading{err: &UnreachableError{Err: r.err}}
	}
	r.waiters = nil
}
