package etcd

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is the pause between connections: random from nothing up to a bound
// that doubles with every round over the endpoints that has failed, so that
// many nodes which lose etcd at once do not come back at once.
type backoff struct {
	base, cap time.Duration
	endpoints int // how many attempts make a round
	failures  int // since the last reset
}

// reset is called when a connection has proved useful.
func (b *backoff) reset() { b.failures = 0 }

// wait pauses after a failure. A slow pause, for what only a person can mend,
// is between half the cap and the cap.
func (b *backoff) wait(ctx context.Context, slow bool) error {
	bound := b.base << min(b.failures/b.endpoints, 16)
	if bound <= 0 || bound > b.cap {
		bound = b.cap
	}
	b.failures++
	pause := rand.N(bound)
	if slow {
		pause = b.cap/2 + rand.N(b.cap/2+1)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
