package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/heliograph/heliograph"
)

// maxSpools bounds what snapshots take on the disk: the one that is shared, and
// one before it that slow readers still use.
const maxSpools = 2

// ErrBusy says that too many snapshots of replaced contents, or of an earlier
// lineage, are in use.
var ErrBusy = errors.New("too many snapshots are in use: try again later")

// spool is one copy of the contents in a file.
//
//	filling ─► ready ─► dropped      filling ─► dropped, with err or abandoned
//
// Store.mu guards the fields that are not fixed when ready is closed.
type spool struct {
	of      *contents
	lineage *heliograph.Lineage // of them when the copy was begun
	made    time.Time
	cancel  context.CancelFunc // ends the filling
	ready   chan struct{}      // closed when the filling has ended

	// Fixed when ready is closed.
	err  error
	file *os.File
	rev  int64
	size int64
	sum  [sha256.Size]byte

	refs    int
	pin     int64     // no compaction of the contents above this
	idle    time.Time // since when refs is 0
	dropped bool
}

// Snapshot returns a consistent copy of the replica. It blocks while a copy is
// made; those who ask while one is being made or used share it, until it is
// Config.SpoolShare old. Until Release, nothing above the snapshot's revision is
// compacted, so that History goes on where it ends. The errors are
// heliograph.ErrNotReady, heliograph.ErrClosed, [ErrNoSpace], [ErrBusy], those
// of the disk and those of ctx.
func (s *Store) Snapshot(ctx context.Context) (heliograph.Snapshot, error) {
	sp, err := s.takeSpool()
	if err != nil {
		return nil, err
	}
	select {
	case <-sp.ready:
		err = sp.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		s.releaseSpool(sp)
		if s.ctx.Err() != nil {
			return nil, heliograph.ErrClosed
		}
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return &snapshot{spool: sp, s: s}, nil
}

// takeSpool returns the spool to share, or starts a new one.
func (s *Store) takeSpool() (*spool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, heliograph.ErrClosed
	}
	c := s.cur.Load()
	if c == nil {
		return nil, heliograph.ErrNotReady
	}
	if n := len(s.spools); n > 0 {
		sp := s.spools[n-1]
		if sp.of == c && sp.lineage == c.lineage.Load() && (time.Since(sp.made) < s.cfg.SpoolShare || n >= maxSpools) {
			sp.refs++
			return sp, nil
		}
		if n >= maxSpools {
			return nil, ErrBusy
		}
	}
	ctx, cancel := context.WithCancel(s.ctx)
	sp := &spool{
		of: c, lineage: c.lineage.Load(), made: time.Now(), cancel: cancel, ready: make(chan struct{}),
		refs: 1,
		// What is copied is at least this, so pinning it early loses nothing.
		pin: c.applied.Load(),
	}
	s.spools = append(s.spools, sp)
	s.spoolSeq++
	path := filepath.Join(s.cfg.Dir, "spool", fmt.Sprintf("%s@%d.db", s.cfg.Database, s.spoolSeq))
	c.users.Add(1)
	s.wg.Go(func() {
		defer c.users.Done()
		defer cancel()
		s.finishFill(sp, s.fill(ctx, sp, path))
	})
	return sp, nil
}

// fill copies the contents into a file at path.
func (s *Store) fill(ctx context.Context, sp *spool, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sp.file = f
	snap := sp.of.be.Snapshot()
	defer func() { err = errors.Join(err, snap.Close()) }()
	room := freeSpace{dir: s.cfg.Dir, keep: s.cfg.MinFree}
	if err := room.check(snap.Size()); err != nil {
		return err
	}
	sum := sha256.New()
	sp.size, err = snap.WriteTo(&guardedWriter{ctx: ctx, to: io.MultiWriter(f, sum), room: &room})
	if err != nil {
		return err
	}
	sum.Sum(sp.sum[:0])
	// The copy itself says how far it goes; the store has gone on meanwhile.
	return view(path, s.cfg.LockTimeout, func(tx *bolt.Tx) error {
		sp.rev, _, err = inspectHead(tx)
		return err
	})
}

func (s *Store) finishFill(sp *spool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp.err = err; err == nil {
		sp.pin = max(sp.pin, sp.rev)
		s.metrics.spooled.Inc()
	}
	if err != nil || sp.dropped {
		s.dropLocked(sp)
	}
	close(sp.ready)
}

// releaseSpool gives up one use of sp.
func (s *Store) releaseSpool(sp *spool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp.refs--; sp.refs > 0 {
		return
	}
	select {
	case <-sp.ready:
	default: // nobody waits for it any more; finishFill cleans up
		sp.cancel()
		sp.dropped = true
		s.forgetLocked(sp)
		return
	}
	if sp.err == nil && s.cfg.SpoolLinger > 0 && !s.closed && sp.of == s.cur.Load() {
		sp.idle = time.Now()
	} else {
		s.dropLocked(sp)
	}
	s.wakeKeeper() // a compaction may have waited for it
}

func (s *Store) forgetLocked(sp *spool) {
	s.spools = slices.DeleteFunc(s.spools, func(x *spool) bool { return x == sp })
}

// dropLocked removes sp and its file, which nobody uses.
func (s *Store) dropLocked(sp *spool) {
	s.forgetLocked(sp)
	sp.dropped = true
	if sp.file == nil {
		return
	}
	err := sp.file.Close()
	if rmErr := os.Remove(sp.file.Name()); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	sp.file = nil
	if err != nil {
		s.log.Warn("spooled snapshot was not removed", "database", s.cfg.Database, "err", err)
	}
}

// expireSpools drops the spools that lingered long enough and returns when the
// next will have, zero if there is none.
func (s *Store) expireSpools(now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range slices.Clone(s.spools) {
		if sp.refs > 0 {
			continue
		}
		end := sp.idle.Add(s.cfg.SpoolLinger)
		switch {
		case !end.After(now) || sp.of != s.cur.Load():
			s.dropLocked(sp)
		case next.IsZero() || end.Before(next):
			next = end
		}
	}
	return next
}

// closeSpools removes the files. Those in use stay readable until released.
func (s *Store) closeSpools() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, sp := range slices.Clone(s.spools) {
		if sp.refs == 0 {
			s.dropLocked(sp)
		} else if rmErr := os.Remove(sp.file.Name()); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}

// snapshot is one use of a spool.
type snapshot struct {
	*spool
	s    *Store
	once sync.Once
}

var _ heliograph.Snapshot = (*snapshot)(nil)

func (h *snapshot) Rev() int64                { return h.rev }
func (h *snapshot) Size() int64               { return h.size }
func (h *snapshot) SHA256() [sha256.Size]byte { return h.sum }
func (h *snapshot) Release()                  { h.once.Do(func() { h.s.releaseSpool(h.spool) }) }

// ReadAt implements [io.ReaderAt]. It must not be called after Release.
func (h *snapshot) ReadAt(p []byte, off int64) (int, error) { return h.file.ReadAt(p, off) }

// guardedWriter writes until ctx ends or the disk is nearly full.
type guardedWriter struct {
	ctx  context.Context
	to   io.Writer
	room *freeSpace
}

func (w *guardedWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if err := w.room.check(int64(len(p))); err != nil {
		return 0, err
	}
	return w.to.Write(p)
}
