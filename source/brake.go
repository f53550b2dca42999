package source

import (
	"sync"
	"time"
)

// brake sets the deadlines of streams until it is pulled. From then on every
// read and write that it guards fails at once, also one that was just about to
// set a later deadline.
type brake struct {
	mu     sync.Mutex
	pulled bool
	guards []func(time.Time) error
}

// guard adds a stream's SetReadDeadline or SetWriteDeadline and returns the
// function that sets it from now on.
func (b *brake) guard(set func(time.Time) error) (within func(time.Duration)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guards = append(b.guards, set)
	if b.pulled {
		_ = set(time.Unix(1, 0))
	}
	return func(d time.Duration) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.pulled {
			_ = set(time.Now().Add(d))
		}
	}
}

func (b *brake) pull() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pulled = true
	for _, set := range b.guards {
		_ = set(time.Unix(1, 0))
	}
}
