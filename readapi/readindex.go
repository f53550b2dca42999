package readapi

import (
	"context"
	"sync"
)

// maxRounds is how many read-index round trips are under way at once. One
// would make a read that just missed it wait for up to two round trips, which
// is long between regions; more than a few only add load on the source.
const maxRounds = 4

// rounds lets linearizable reads share read-index round trips. A read may only
// share a round that begins after the read arrived: an earlier one could bring
// back a revision that the reader has already seen surpassed elsewhere.
type rounds struct {
	ask     func(ctx context.Context) error // one round: ask, and wait until it is applied
	metrics *metrics
	wg      sync.WaitGroup // rounds under way

	mu      sync.Mutex
	running int
	next    *round // has not begun; nil if nobody waits for a place
}

type round struct {
	done chan struct{}
	err  error // valid when done is closed
}

// wait returns when a round that began after the call has ended, with its error.
func (r *rounds) wait(ctx, base context.Context) error {
	rd := r.join(base)
	select {
	case <-rd.done:
		return rd.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns a round that has not begun, or begins one. base ends with the
// server, not with the request, because others may join.
func (r *rounds) join(base context.Context) *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next != nil {
		r.metrics.readIndexShared.Inc()
		return r.next
	}
	rd := &round{done: make(chan struct{})}
	if r.running == maxRounds {
		r.next = rd
		return rd
	}
	r.running++
	r.wg.Go(func() { r.run(base, rd) })
	return rd
}

// run performs rounds, one after the other, until nobody waits for one.
func (r *rounds) run(ctx context.Context, rd *round) {
	for rd != nil {
		rd.err = r.ask(ctx)
		close(rd.done)
		r.metrics.readIndexRounds.Inc()
		if rd.err != nil {
			r.metrics.readIndexFailures.Inc()
		}
		r.mu.Lock()
		rd, r.next = r.next, nil
		if rd == nil {
			r.running--
		}
		r.mu.Unlock()
	}
}
