package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
// compaction that is under way and scans the whole database, one call at a time;
// compactions wait for it, and nothing else does. It holds some 60 bytes for each
// key that was written above the store's own compaction revision. The errors are
// heliograph.ErrCompacted, ErrFutureRevision, ErrNotReady and ErrClosed, and
// those of ctx.
func (s *Store) HashKV(ctx context.Context, rev int64) (HashKV, error) {
	var out HashKV
	err := s.hash(ctx, func(c *contents) (err error) {
		out = HashKV{HashRevision: rev, CompactRevision: c.compacted.Load(), CurrentRevision: c.applied.Load()}
		if rev == 0 {
			out.HashRevision = out.CurrentRevision
		}
		if h, ok := c.remembered(rev); ok {
			out.Hash, out.CompactRevision = h.Hash, h.CompactRevision
			return nil
		}
		out.Hash, _, err = s.hashContents(ctx, c, out.HashRevision, out.CompactRevision)
		if out.CompactRevision == 0 {
			out.CompactRevision = -1
		}
		return err
	})
	return out, hashError(rev, err)
}

// HashAt returns the hash at rev as an etcd gives it whose compaction revision is
// compacted (0: never compacted). So a replica that keeps more history than its
// source can be compared with it. It costs what HashKV does, and its errors are the
// same. What cannot be told is heliograph.ErrCompacted: the replica is compacted
// further than compacted, or no key is left at rev. Unlike HashKV, it has always
// read the records: a remembered hash says nothing of what the file holds now.
func (s *Store) HashAt(ctx context.Context, rev, compacted int64) (hash uint32, err error) {
	err = s.hash(ctx, func(c *contents) error {
		var emptied bool
		if hash, emptied, err = s.hashContents(ctx, c, rev, compacted); err == nil && emptied {
			return fmt.Errorf("no key is left there, and etcd's hash depends on whether it has been compacted just there: %w", heliograph.ErrCompacted)
		}
		return err
	})
	return hash, hashError(rev, err)
}

// remembered returns a hash from before a compaction at its revision, if MVCC has
// made that compaction since the file was opened. With such a hash etcd answers
// for as long as it knows it.
func (c *contents) remembered(rev int64) (mvcc.KeyValueHash, bool) {
	known := c.epoch.kv.HashStorage().Hashes()
	if i := slices.IndexFunc(known, func(h mvcc.KeyValueHash) bool { return h.Revision == rev }); i >= 0 {
		return known[i], true
	}
	return mvcc.KeyValueHash{}, false
}

// hashContents hashes c, whose compactions are done. Emptied means that no key is
// left at rev, though some were there at compacted. Of that etcd has two hashes:
// hash, and, once it is compacted at rev itself, one of nothing but what it has
// above compacted.
func (s *Store) hashContents(ctx context.Context, c *contents, rev, compacted int64) (hash uint32, emptied bool, err error) {
	base := c.compacted.Load()
	switch {
	case rev > c.applied.Load():
		return 0, false, heliograph.ErrFutureRevision
	case rev < compacted:
		return 0, false, fmt.Errorf("%w (at %d)", heliograph.ErrCompacted, compacted)
	case base > compacted:
		return 0, false, fmt.Errorf("%w (at %d)", heliograph.ErrCompacted, base)
	case rev > c.durable.Load():
		s.commit(c) // what is hashed has to stand in the file
	}
	h := hasher{be: c.be, base: base, compacted: compacted, rev: rev, current: rev, goOn: func() error {
		select {
		case <-c.gone:
			return errReplaced
		case <-s.ctx.Done():
			return heliograph.ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		default:
			return nil
		}
	}}
	some, err := c.hasKeys(rev)
	if err == nil && !some && compacted > 0 {
		h.current = compacted
		emptied, err = c.hasKeys(compacted)
	}
	if err == nil {
		hash, err = h.sum()
	}
	return hash, emptied, err
}

// hasKeys reports whether there was a key at rev. The empty key counts, in whose
// name etcdutl raises the revision.
func (c *contents) hasKeys(rev int64) (bool, error) {
	read := c.epoch.kv.Read(mvcc.SharedBufReadTxMode, traceutil.TODO())
	defer read.End()
	r, err := read.Range(context.Background(), []byte{}, []byte{}, mvcc.RangeOptions{Rev: rev, Limit: 1, FastKeysOnly: true})
	if err != nil {
		return false, err
	}
	return len(r.KVs) > 0, nil
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

// hash runs one scan at a time, again if the contents are replaced meanwhile. It
// holds on to the contents, because MVCC's hashes go on reading a backend after
// Restore has replaced it. From before the scan until after it nothing is compacted.
func (s *Store) hash(ctx context.Context, scan func(c *contents) error) error {
	select {
	case s.hashing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return heliograph.ErrClosed
	}
	defer func() { <-s.hashing }()
	s.holdCompactions(true)
	defer s.holdCompactions(false)
	for {
		c, err := s.acquire()
		if err != nil {
			return err
		}
		if err = s.settle(ctx, c); err == nil {
			err = scan(c)
		}
		c.users.Done()
		if s.isCurrent(c) {
			return err
		}
	}
}

func (s *Store) holdCompactions(hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = hold
	if !hold {
		s.wakeKeeper()
	}
}

// isCurrent reports whether c is what the store serves. While that is being
// changed, it waits.
func (s *Store) isCurrent(c *contents) bool {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	return s.cur.Load() == c
}

// settle waits for a compaction that is under way. Without it, etcd's hash would
// see what is still to be removed, though only when no key is left at the hashed
// revision.
func (s *Store) settle(ctx context.Context, c *contents) error {
	done, err := s.compactionBarrier(c)
	if done == nil || err != nil {
		return err
	}
	select {
	case <-done:
		return ctx.Err()
	case <-c.gone:
		return errReplaced
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return heliograph.ErrClosed
	}
}

// compactionBarrier returns a channel that is closed when the compactions before
// it have ended, nil if there never was one. What MVCC shows is applied when it
// returns.
func (s *Store) compactionBarrier(c *contents) (done <-chan struct{}, err error) {
	s.applyMu.Lock() // else another file's history might be compacted
	defer s.applyMu.Unlock()
	if s.cur.Load() != c {
		return nil, errReplaced
	}
	rev := c.compacted.Load()
	if rev == 0 {
		return nil, nil
	}
	// To compact where it was compacted does nothing, behind what is queued.
	done, err = s.kv.Compact(traceutil.TODO(), rev)
	if !errors.Is(err, mvcc.ErrCompacted) {
		panic(fmt.Sprintf("store: MVCC is not compacted at %d: %v", rev, err))
	}
	return done, nil
}
