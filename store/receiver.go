package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
)

// receiver takes one snapshot into the .partial file.
type receiver struct {
	s     *Store
	total int64 // announced; 0 if not known

	mu   sync.Mutex
	file *os.File
	room freeSpace
	size int64
	sum  hash.Hash
	err  error // a write failed: only Abort is left
	done bool
}

var _ heliograph.SnapshotReceiver = (*receiver)(nil)

// ReceiveSnapshot begins to receive a snapshot of total bytes, 0 if that is not
// known. Only one can be received at a time. The contents stay as they are until
// its Commit.
func (s *Store) ReceiveSnapshot(total int64) (heliograph.SnapshotReceiver, error) {
	if total < 0 {
		return nil, fmt.Errorf("snapshot of %d bytes", total)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, heliograph.ErrClosed
	}
	if s.receiver != nil {
		return nil, errors.New("another snapshot is being received")
	}
	r := &receiver{
		s: s, total: total, sum: sha256.New(),
		room: freeSpace{dir: s.cfg.Dir, keep: s.cfg.MinFree},
	}
	if err := r.room.check(total); err != nil {
		return nil, fmt.Errorf("receive snapshot: %w", err)
	}
	f, err := os.OpenFile(s.path(".partial"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("receive snapshot: %w", err)
	}
	r.file = f
	s.receiver = r
	return r, nil
}

// WriteChunk appends p, which must begin where the last chunk ended. Bytes above
// the announced total are refused. After a failed write only Abort is left.
func (r *receiver) WriteChunk(offset int64, p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.done:
		return heliograph.ErrClosed
	case r.err != nil:
		return r.err
	case offset != r.size:
		return fmt.Errorf("snapshot chunk begins at byte %d, but %d bytes have been received", offset, r.size)
	case r.total > 0 && int64(len(p)) > r.total-r.size:
		return fmt.Errorf("snapshot is longer than the %d bytes announced", r.total)
	}
	if err := r.room.check(int64(len(p))); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	if _, err := r.file.Write(p); err != nil {
		r.err = fmt.Errorf("receive snapshot: %w", err)
		return r.err
	}
	r.sum.Write(p)
	r.size += int64(len(p))
	return nil
}

// Abort drops what was received; after Commit it does nothing.
func (r *receiver) Abort() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.endLocked(true)
}

// endLocked closes the file, once, and removes it unless it has become the
// store's.
func (r *receiver) endLocked(remove bool) error {
	if r.done {
		return nil
	}
	r.done = true
	var err error
	if r.file != nil {
		err = r.file.Close()
	}
	if remove {
		err = errors.Join(err, os.Remove(r.s.path(".partial")))
	}
	r.s.mu.Lock()
	r.s.receiver = nil
	r.s.mu.Unlock()
	return err
}

// Commit checks what was received and makes it the contents; it returns its
// revision, which is durable. A snapshot of another origin is a
// *heliograph.DivergedError, unless the forks in it say that its history left that
// of the contents, and not before what is applied; one that is older than what was applied is refused.
// After an error the contents are what they were and nothing is left behind.
func (r *receiver) Commit(size int64, sum [sha256.Size]byte, origin heliograph.Origin) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return 0, heliograph.ErrClosed
	}
	rev, err := r.commitLocked(size, sum, origin)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("snapshot: %w", err), r.endLocked(true))
	}
	return rev, r.endLocked(false)
}

func (r *receiver) commitLocked(size int64, sum [sha256.Size]byte, origin heliograph.Origin) (int64, error) {
	if err := r.checkSum(size, sum); err != nil {
		return 0, err
	}
	if _, err := heliograph.ParseOrigin(origin.String()); err != nil {
		return 0, err
	}
	// Synced here, though writeOwn syncs the same file: what inspect reads must
	// be what the disk has accepted.
	err := errors.Join(r.file.Sync(), r.file.Close())
	r.file = nil
	if err != nil {
		return 0, err
	}
	return r.s.replace(origin)
}

func (r *receiver) checkSum(size int64, sum [sha256.Size]byte) error {
	switch {
	case r.err != nil:
		return r.err
	case r.total > 0 && size != r.total:
		return fmt.Errorf("wrong size: %d bytes were announced, and then %d", r.total, size)
	case size != r.size:
		return fmt.Errorf("wrong size: %d bytes were sent and %d received", size, r.size)
	case [sha256.Size]byte(r.sum.Sum(nil)) != sum:
		return errors.New("wrong SHA-256: it was damaged on the way")
	}
	return nil
}

// replace makes the complete .partial file the contents.
func (s *Store) replace(origin heliograph.Origin) (rev int64, err error) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if s.ctx.Err() != nil {
		return 0, heliograph.ErrClosed
	}
	partial := s.path(".partial")
	var sum summary
	to := heliograph.Lineage{Origin: origin}
	proven := true
	if err := view(partial, s.cfg.LockTimeout, func(tx *bolt.Tx) (err error) {
		if to.Forks, err = readForks(tx); err != nil {
			return err
		}
		left, err := s.leads(to)
		if err != nil {
			return err
		}
		if sum, err = inspectAll(tx); err != nil {
			return err
		}
		if old := s.cur.Load(); old != nil && old.applied.Load() <= sum.head {
			proven, err = s.continues(old, sum, left, tx)
		}
		return err
	}); err != nil {
		return 0, err
	}
	if applied := s.Applied(); sum.head < applied {
		return 0, fmt.Errorf("it ends at revision %d, before the applied revision %d: a replica never steps back", sum.head, applied)
	}
	// Opened under its passing name, so that what can fail has failed before
	// the old file loses its own.
	c, err := openContents(partial, s.cfg.LockTimeout, s.zap)
	if err != nil {
		return 0, err
	}
	c.lineage.Store(&to)
	c.digests.begin(sum.tally, tally{}, sum.base)
	err = writeOwn(c.be, to, s.auth.Load())
	if err == nil {
		err = os.Rename(partial, s.path(".db"))
	}
	if err != nil {
		return 0, errors.Join(err, c.be.Close())
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		// Which file a crash would leave is unknown now, so nothing that is
		// written from here on could be called durable.
		s.zap.Fatal("failed to sync the data folder", zap.Error(err))
	}
	s.install(c, sum, nil)
	s.generation.Add(1)
	s.dirty.Store(0)
	s.metrics.received.Inc()
	if !proven {
		s.metrics.unproven.Inc()
		s.log.Warn("snapshot shares no record with what it replaces", "database", s.cfg.Database, "rev", s.Applied())
	}
	s.log.Info("snapshot installed", "database", s.cfg.Database, "rev", s.Applied(), "origin", origin.String())
	s.notify()
	s.wakeKeeper()
	return s.Applied(), nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
