package link

import (
	"context"
	"math/rand/v2"
	"time"
)

// class says what an error means for the next attempt.
type class uint8

const (
	none   class = iota // no error
	quick               // the source asked for a new connection: reconnect within the base
	soon                // the source is there and says that it is not ready: back off, but not far
	normal              // may pass by itself: back off
	slow                // somebody has to mend a configuration: show it, retry slowly
	fatal               // the histories have diverged: stop
)

// soonBases bounds the wait for a source that is not ready, in bases. Such a
// source costs a handshake to ask, and is not yet serving anybody else.
const soonBases = 4

// backoff decides how long to wait before the next attempt: uniformly random
// between nothing and a bound that doubles ("full jitter"), so that the mirrors
// of a source that was restarted do not come back in step.
type backoff struct {
	base, cap, slow time.Duration
	settled         time.Duration
	random          func(n int64) int64 // uniform in [0, n)

	fails    int  // in a row
	wasQuick bool // the last wait was a quick one
}

func newBackoff(c *Config) *backoff {
	return &backoff{base: c.BackoffBase, cap: c.BackoffCap, slow: c.SlowRetry, settled: c.Settled, random: rand.Int64N}
}

// ended notes how a connection did: one that lived long enough or brought the
// replica further starts the waits anew.
func (b *backoff) ended(lived time.Duration, progressed bool) {
	if lived >= b.settled || progressed {
		b.fails, b.wasQuick = 0, false
	}
}

// next returns how long to wait after an error of class c.
func (b *backoff) next(c class) time.Duration {
	if c == slow {
		b.wasQuick = false
		return b.slow + b.upTo(b.slow/2) // never sooner than promised
	}
	// A quick one waits like a first failure, but a second in a row like any:
	// a source that resets for ever must not be hammered.
	if c == quick && !b.wasQuick {
		b.fails = 0
	}
	b.wasQuick = c == quick
	bound, limit := b.base, b.cap
	if c == soon {
		limit = min(soonBases*b.base, b.cap)
	}
	for i := 0; i < b.fails && bound < limit; i++ {
		bound *= 2
	}
	b.fails++
	return b.upTo(min(bound, limit))
}

// nextWithin is next where the wait must not be longer than most.
func (b *backoff) nextWithin(c class, most time.Duration) time.Duration {
	d := b.next(c)
	if d > most {
		d = b.upTo(most)
	}
	return d
}

func (b *backoff) upTo(d time.Duration) time.Duration {
	return time.Duration(b.random(int64(d) + 1))
}

// How often an attempt may begin while somebody asks: an ordinary one, and one of what
// somebody has to mend.
const (
	retryEvery     = time.Second
	retrySlowEvery = 5 * time.Second
)

// pause waits for d or until ctx ends, and reports whether ctx has not. While
// somebody asks, the pause after an error of class c is as short as it may be.
func (l *Link) pause(ctx context.Context, c class, d time.Duration) bool {
	began, asked := time.Now(), l.retry
	every := retryEvery
	if c == slow {
		every = retrySlowEvery
	}
	least := max(0, every-began.Sub(l.attempted))
	if l.asking() {
		d = min(d, least)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return true
		case <-asked:
			if l.asking() { // still
				asked = nil
				t.Reset(min(d, least) - time.Since(began))
			}
		case <-ctx.Done():
			return false
		}
	}
}

// jitter returns between nothing and d.
func jitter(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d) + 1)) }

// sleep waits for d or until ctx ends, and reports whether it waited in full.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
