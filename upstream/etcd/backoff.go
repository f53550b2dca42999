package etcd

import (
	"context"
	"math/rand/v2"
	"time"
)

// Least pauses between connections while a read waits for one: an ordinary one, and
// one for what only a person can mend.
const (
	retryEvery     = time.Second
	retrySlowEvery = 5 * time.Second
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
// is between half the cap and the cap. Something in wanted makes it as short as it
// may be.
func (b *backoff) wait(ctx context.Context, slow bool, wanted <-chan struct{}) error {
	bound := b.base << min(b.failures/b.endpoints, 16)
	if bound <= 0 || bound > b.cap {
		bound = b.cap
	}
	b.failures++
	began, pause, least := time.Now(), rand.N(bound), retryEvery
	if slow {
		pause, least = b.cap/2+rand.N(b.cap/2+1), retrySlowEvery
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wanted:
			wanted = nil
			timer.Reset(min(pause, least) - time.Since(began))
		case <-timer.C:
			return nil
		}
	}
}
