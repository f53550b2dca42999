package link

import (
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// acks decides what to acknowledge and when: at most once per delay, and again
// when what was applied has become durable. The clock is its callers'.
//
// Invariant: acks never fall, and Durable <= Applied.
type acks struct {
	replica heliograph.Replica
	delay   time.Duration
	sync    bool // acknowledge only what is durable, at once

	mu     sync.Mutex
	open   bool     // not while a snapshot is received: the replica still holds what it replaces
	last   wire.Ack // as sent
	sentAt time.Time
}

// start allows acks, from a revision that the source knows us to have. The
// first goes out even if nothing has changed: it tells what is durable.
func (a *acks) start(rev int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open = true
	a.last = wire.Ack{AppliedLSN: rev, DurableLSN: -1}
}

// due returns an ack that is to be sent now, or how long to wait before asking
// again; a wait of 0 means until something changes.
func (a *acks) due(now time.Time) (ack wire.Ack, send bool, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.open {
		return wire.Ack{}, false, 0
	}
	// Durable first: in this order it cannot be above what is applied.
	ack.DurableLSN = max(a.replica.Durable(), a.last.DurableLSN)
	ack.AppliedLSN = max(a.replica.Applied(), a.last.AppliedLSN)
	if a.sync {
		ack.AppliedLSN = max(ack.DurableLSN, a.last.AppliedLSN)
	}
	if ack == a.last {
		if ack.DurableLSN < ack.AppliedLSN {
			return ack, false, a.delay // a replica does not say when it has synced
		}
		return ack, false, 0
	}
	if rest := a.delay - now.Sub(a.sentAt); rest > 0 && !a.sync {
		return ack, false, rest
	}
	a.last, a.sentAt = ack, now
	return ack, true, a.delay
}
