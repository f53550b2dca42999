package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
)

// maxDirtyBytes is how much is applied at most without a commit. It bounds the
// memory of the open transaction, and what a commit can need on the disk.
const maxDirtyBytes = 32 << 20

// diskBytesPerByte is how much a commit may write for a byte applied: bbolt
// copies the pages that change, and those above them.
const diskBytesPerByte = 3

// Apply makes the batch visible to readers and watchers, all of it at once; it
// is durable later (see Durable). The batch is not retained.
//
// Everything is checked before anything is written. The error is
// heliograph.ErrNotReady before the first snapshot, a *heliograph.GapError for
// a batch that is not the next, a *heliograph.DivergedError for records that
// this history cannot continue with, [ErrNoSpace], or heliograph.ErrClosed. The
// store is unharmed by all of them.
func (s *Store) Apply(b heliograph.Batch) error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if s.ctx.Err() != nil {
		return heliograph.ErrClosed
	}
	c := s.cur.Load()
	if c == nil {
		return heliograph.ErrNotReady
	}
	if c.damaged != nil {
		return c.damaged
	}
	if applied := c.applied.Load(); b.Rev != applied+1 {
		return &heliograph.GapError{Applied: applied, Got: b.Rev}
	}
	size := b.Bytes()
	if size > heliograph.MaxBatchBytes {
		return fmt.Errorf("revision %d holds %d bytes: at most %d are allowed", b.Rev, size, heliograph.MaxBatchBytes)
	}
	if err := s.free.check(diskBytesPerByte * (s.dirty.Load() + size)); err != nil {
		return err
	}
	changes, err := decodeBatch(b)
	if err != nil {
		return s.diverged(b.Rev, err)
	}
	if err := s.write(c, b, changes); err != nil {
		return s.diverged(b.Rev, err)
	}
	s.writeLeases(c, s.lessor.takeFreed())
	c.applied.Store(b.Rev)
	c.digests.publish()
	s.metrics.applied(len(changes), size)
	if s.dirty.Add(size) >= maxDirtyBytes {
		s.commit(c)
	}
	s.notify()
	return nil
}

func (s *Store) diverged(rev int64, err error) error {
	s.metrics.divergences.Inc()
	return &heliograph.DivergedError{
		Rev: rev,
		Why: err.Error() + "; the upstream is another history or is damaged, and a resync replaces this copy",
	}
}

// change is one decoded record.
type change struct {
	keyValue
	delete bool
}

// decodeBatch checks all that the records alone can tell.
func decodeBatch(b heliograph.Batch) ([]change, error) {
	if len(b.Records) == 0 {
		return nil, errors.New("the revision changes nothing")
	}
	changes := make([]change, len(b.Records))
	for i, r := range b.Records {
		rk, kv, err := decodeRecord(r.Key, r.Value)
		if err != nil {
			return nil, err
		}
		if rk.Main != b.Rev || rk.Sub != int64(i) {
			return nil, fmt.Errorf("record %d/%d stands at place %d of revision %d", rk.Main, rk.Sub, i, b.Rev)
		}
		changes[i] = change{keyValue: kv, delete: rk.Delete}
	}
	if i := repeated(changes); i >= 0 {
		return nil, fmt.Errorf("record %d/%d changes a key for the second time", b.Rev, i)
	}
	return changes, nil
}

// repeated returns the first change of a key that an earlier one changes, or
// -1. etcd lets a transaction change a key only once.
func repeated(changes []change) int {
	if len(changes) <= 8 {
		for i := range changes {
			for j := range i {
				if bytes.Equal(changes[i].key, changes[j].key) {
					return i
				}
			}
		}
		return -1
	}
	seen := make(map[string]struct{}, len(changes))
	for i := range changes {
		if _, ok := seen[string(changes[i].key)]; ok {
			return i
		}
		seen[string(changes[i].key)] = struct{}{}
	}
	return -1
}

// write replays the changes as one transaction. An error means that nothing
// was written.
func (s *Store) write(c *contents, b heliograph.Batch, changes []change) (err error) {
	rev, digest := b.Rev, batchDigest(b)
	trace := traceutil.TODO()
	tx := s.kv.Write(trace)
	// Without this, MVCC would note four timestamped steps for every put.
	trace.StepWithFunction(func() {
		for i := range changes {
			if err = check(tx, &changes[i]); err != nil {
				err = fmt.Errorf("record %d/%d: %w", rev, i, err)
				return
			}
		}
		for i := range changes {
			put(tx, &changes[i])
		}
		mustMatch(tx, rev, changes)
		c.digests.write(digest) // before tx.End, which may commit
	}, "")
	tx.End()
	return err
}

// check compares the change with what MVCC is going to derive for its key. The
// index alone answers that.
func check(tx mvcc.TxnWrite, ch *change) error {
	r, err := tx.Range(context.Background(), ch.key, nil, mvcc.RangeOptions{FastKeysOnly: true})
	if err != nil {
		return err
	}
	if len(r.KVs) == 0 {
		switch {
		case ch.delete:
			return errors.New("it deletes a key that does not exist here")
		case ch.create != ch.mod || ch.version != 1:
			return fmt.Errorf("the key does not exist here, but the record says version %d, created at %d", ch.version, ch.create)
		}
		return nil
	}
	have := r.KVs[0]
	if !ch.delete && (ch.create != have.CreateRevision || ch.version != have.Version+1) {
		return fmt.Errorf("the key has version %d here, created at %d, but the record says version %d, created at %d",
			have.Version, have.CreateRevision, ch.version, ch.create)
	}
	return nil
}

// put replays one change. MVCC keeps the key in its index and hands key and
// value to watchers, so both are copied, and apart: an index must not hold on to
// values.
func put(tx mvcc.TxnWrite, ch *change) {
	key := bytes.Clone(ch.key)
	if ch.delete {
		tx.DeleteRange(key, nil)
		return
	}
	tx.Put(key, bytes.Clone(ch.value), lease.LeaseID(ch.lease))
}

// mustMatch compares what MVCC wrote with the records once more. check has
// already proved it, so a difference is a bug in this program or in MVCC. The
// panic ends the process while the transaction is open, and nothing of it
// becomes durable.
func mustMatch(tx mvcc.TxnWrite, rev int64, changes []change) {
	got := tx.Changes()
	if len(got) != len(changes) || tx.Rev()+1 != rev {
		panic(fmt.Sprintf("store: revision %d: MVCC made %d changes of %d at revision %d", rev, len(got), len(changes), tx.Rev()+1))
	}
	for i, kv := range got {
		ch := &changes[i]
		if kv.CreateRevision != ch.create || kv.ModRevision != ch.mod || kv.Version != ch.version || kv.Lease != ch.lease {
			panic(fmt.Sprintf("store: revision %d: MVCC wrote record %d differently", rev, i))
		}
	}
}
