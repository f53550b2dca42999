package node

import (
	"context"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
)

// Limits of verifications. Each scans whole databases, here and in etcd.
const (
	// verifyTimeout bounds one verification.
	verifyTimeout = 10 * time.Minute
	// shareFor is how long a result is good enough for a mirror that asks.
	shareFor = time.Minute
	// firstVerifyAfter is when a node that has just started verifies at the
	// latest for the first time, if it does at all by itself.
	firstVerifyAfter = time.Minute
)

// notRunning is the result where nothing is verified any more.
var notRunning = heliograph.Unverified("the node is stopping, or being promoted")

// verifier runs one verification at a time, for all who want one.
type verifier struct {
	once     func(ctx context.Context) heliograph.Verification
	current  func(v heliograph.Verification) bool // whether v may still be shared
	ended    func(v heliograph.Verification)
	interval time.Duration // 0: only when asked
	wake     chan struct{} // capacity 1: there is a flight

	mu     sync.Mutex
	over   bool    // run has returned: nothing is verified any more
	flight *flight // asked for or under way; nil if none
	last   heliograph.Verification
	good   heliograph.Verification // the last that proved equality
}

// flight is one verification that others wait for.
type flight struct {
	done   chan struct{}
	result heliograph.Verification // fixed when done is closed
}

// ask returns the result of a verification that it waits for: the one that is
// under way, or a new one. With shared, one that ended within shareFor will do.
func (r *verifier) ask(ctx context.Context, shared bool) heliograph.Verification {
	r.mu.Lock()
	if last := r.last; shared && last.Result != "" && time.Since(last.At) < shareFor && r.current(last) {
		r.mu.Unlock()
		return last
	}
	if r.over {
		r.mu.Unlock()
		return notRunning
	}
	f := r.beginLocked()
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.result
	case <-ctx.Done():
		return heliograph.Unverified("gave up waiting: " + context.Cause(ctx).Error())
	}
}

func (r *verifier) beginLocked() *flight {
	if r.flight == nil {
		r.flight = &flight{done: make(chan struct{})}
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return r.flight
}

// run verifies when asked and at the interval, until ctx ends.
func (r *verifier) run(ctx context.Context) {
	var tick <-chan time.Time
	if r.interval > 0 {
		first := time.NewTimer(min(r.interval, firstVerifyAfter))
		defer first.Stop()
		tick = first.C
	}
	var ticker *time.Ticker
	for {
		select {
		case <-ctx.Done():
			r.mu.Lock()
			r.over = true
			r.mu.Unlock()
			r.end(ctx, notRunning)
			return
		case <-r.wake:
		case <-tick:
			if ticker == nil {
				ticker = time.NewTicker(r.interval)
				defer ticker.Stop()
				tick = ticker.C
			}
			r.mu.Lock()
			r.beginLocked()
			r.mu.Unlock()
			continue // it has woken us
		}
		began := time.Now()
		timed, cancel := context.WithTimeout(ctx, verifyTimeout)
		v := r.once(timed)
		cancel()
		v.TookMS = time.Since(began).Milliseconds()
		r.end(ctx, v)
	}
}

// end gives the result to those who wait.
func (r *verifier) end(ctx context.Context, v heliograph.Verification) {
	v.At = time.Now()
	r.mu.Lock()
	f := r.flight
	if f == nil {
		r.mu.Unlock()
		return
	}
	f.result, r.flight = v, nil
	if ctx.Err() == nil {
		r.last = v
		if v.Result == heliograph.VerifyEqual {
			r.good = v
		}
	}
	r.mu.Unlock()
	if ctx.Err() == nil {
		r.ended(v)
	}
	close(f.done)
}

// forget drops the results: they were of contents that are no more.
func (r *verifier) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.good = heliograph.Verification{}, heliograph.Verification{}
}

// results returns the last verification, and the last that proved equality.
func (r *verifier) results() (last, good heliograph.Verification) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.good
}
