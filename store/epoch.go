package store

import (
	"sync"

	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// epoch is the life of one MVCC store: from a first snapshot to a Reset. Within
// it snapshots may replace the contents; readers and watchers do not outlive it.
type epoch struct {
	kv mvcc.WatchableKV

	mu    sync.Mutex
	users int
	over  bool
	idle  chan struct{} // closed when it is over and nobody uses kv any more
}

func newEpoch(kv mvcc.WatchableKV) *epoch {
	return &epoch{kv: kv, idle: make(chan struct{})}
}

// enter keeps kv open until leave; false if the epoch is over.
func (e *epoch) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	e.users++
	return true
}

func (e *epoch) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.users--
	if e.over && e.users == 0 {
		close(e.idle)
	}
}

// end lets nobody in any more. A second call does nothing.
func (e *epoch) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return
	}
	e.over = true
	if e.users == 0 {
		close(e.idle)
	}
}
