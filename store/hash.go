package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
)

// HashKV is a hash over the history, as etcd's HashKV gives it. Hashes of two
// replicas can be compared if HashRevision and CompactRevision are equal.
type HashKV struct {
	Hash            uint32
	HashRevision    int64 // everything up to here is hashed
	CompactRevision int64 // -1 if never compacted, as in etcd
	CurrentRevision int64 // when the hash was made
}

// HashKV returns the hash at rev, 0 meaning the current revision. It waits for a
// compaction that is under way and scans the whole database, one call at a time,
// which holds commits back; ctx bounds the waiting, not the scan. The errors are
// heliograph.ErrCompacted, ErrFutureRevision, ErrNotReady and ErrClosed, and
// those of ctx.
func (s *Store) HashKV(ctx context.Context, rev int64) (HashKV, error) {
	var out HashKV
	err := s.hash(ctx, func(c *contents) error {
		h, current, err := c.epoch.kv.HashStorage().HashByRev(rev)
		out = HashKV{Hash: h.Hash, HashRevision: h.Revision, CompactRevision: h.CompactRevision, CurrentRevision: current}
		return err
	})
	return out, hashError(rev, err)
}

// hashError turns MVCC's errors into ours.
func hashError(rev int64, err error) error {
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		err = heliograph.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		err = heliograph.ErrFutureRevision
	case err == nil:
		return nil
	}
	return fmt.Errorf("hash at revision %d: %w", rev, err)
}

// Hash returns the hash over all buckets of the file and the revision, as etcd's
// Maintenance.Hash does. The bucket heliograph is hashed too, so it never equals
// the source's.
func (s *Store) Hash() (hash uint32, rev int64, err error) {
	err = s.hash(s.ctx, func(c *contents) error {
		hash, rev, err = c.epoch.kv.HashStorage().Hash()
		return err
	})
	return hash, rev, err
}

// hash runs one scan. It holds on to the contents, because MVCC's hashes go on
// reading a backend after Restore has replaced it.
func (s *Store) hash(ctx context.Context, scan func(c *contents) error) error {
	select {
	case s.hashing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return heliograph.ErrClosed
	}
	defer func() { <-s.hashing }()
	for {
		c, err := s.acquire()
		if err != nil {
			return err
		}
		settled, err := s.settle(ctx, c)
		if err == nil && settled {
			err = scan(c)
		}
		c.users.Done()
		if err != nil || settled {
			return err
		}
	}
}

// settle waits for a compaction that is under way. Without it, etcd's hash would
// see what is still to be removed, though only when no key is left at the hashed
// revision. It reports false if the contents were replaced meanwhile.
func (s *Store) settle(ctx context.Context, c *contents) (bool, error) {
	done, current := s.compactionBarrier(c)
	if done == nil {
		return current, ctx.Err()
	}
	select {
	case <-done:
		return true, ctx.Err()
	case <-c.gone:
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-s.ctx.Done():
		return false, heliograph.ErrClosed
	}
}

// compactionBarrier returns a channel that is closed when the compactions before
// it have ended, nil if there never was one. It reports whether c is current.
func (s *Store) compactionBarrier(c *contents) (done <-chan struct{}, current bool) {
	s.applyMu.Lock() // else another file's history might be compacted
	defer s.applyMu.Unlock()
	if s.cur.Load() != c {
		return nil, false
	}
	rev := c.compacted.Load()
	if rev == 0 {
		return nil, true
	}
	// To compact where it was compacted does nothing, behind what is queued.
	done, err := s.kv.Compact(traceutil.TODO(), rev)
	if !errors.Is(err, mvcc.ErrCompacted) {
		panic(fmt.Sprintf("store: MVCC is not compacted at %d: %v", rev, err))
	}
	return done, true
}
