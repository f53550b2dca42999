package store

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
)

// contents is one open database file: the one that the store serves, or one
// that a snapshot has replaced while somebody was still reading it.
//
// Invariant: durable <= applied, compacted <= floor <= applied.
type contents struct {
	be backend.Backend
	// lineage is never nil once the contents are current; Adopt replaces it.
	lineage atomic.Pointer[heliograph.Lineage]
	digests *digests
	// damaged is why nothing may be applied: the file does not hold what was
	// applied to it. Nil if it does. Fixed before the contents are current.
	damaged *heliograph.DivergedError
	unequal atomic.Pointer[heliograph.DivergedError] // nil unless a verification has found a difference
	epoch   *epoch
	access  heliograph.AccessControl // of its users and roles; fixed, too
	// users counts those who read be outside of MVCC's own locks; be is closed
	// when they have gone. Add is called with Store.mu held and only while
	// these contents are current.
	users sync.WaitGroup
	gone  chan struct{} // closed when other contents are current

	applied   atomic.Int64
	durable   atomic.Int64
	compacted atomic.Int64 // what MVCC has been told and has written down
	floor     atomic.Int64 // history at or below may be missing; raised before MVCC is told

	loose        atomic.Int64 // counts what was written beside revisions: leases and the like
	looseDurable atomic.Int64 // how much of that is durable
}

// openContents opens the file at path, which inspect has found good.
func openContents(path string, timeout time.Duration, lg *zap.Logger) (c *contents, err error) {
	defer func() {
		if p := recover(); p != nil { // backend.New knows no other way to fail
			err = fmt.Errorf("open %s: %v", path, p)
		}
	}()
	cfg := backend.DefaultBackendConfig(lg)
	cfg.Path = path
	cfg.Timeout = timeout
	// The committer decides when to commit.
	cfg.BatchInterval = math.MaxInt64
	d := new(digests)
	cfg.Hooks = d
	// MmapSize stays at etcd's 10 GiB. It is address space, not memory, and
	// until the file outgrows it, bbolt need not stop all readers to remap.
	return &contents{be: backend.New(cfg), digests: d, gone: make(chan struct{})}, nil
}

// begin sets the positions to what MVCC found in the file.
func (c *contents) begin(rev, compacted, floor int64) {
	c.applied.Store(rev)
	c.durable.Store(rev)
	c.compacted.Store(compacted)
	c.floor.Store(max(floor, 1)) // no etcd has a record of revision 1
}
