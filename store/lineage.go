package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/heliograph/heliograph"
)

// inspectAll inspects a snapshot and adds the digests that a node before us had
// of it, which reach further back than its records.
func inspectAll(tx *bolt.Tx) (summary, error) {
	sum, err := inspect(tx)
	if err != nil {
		return sum, err
	}
	carried, err := readDigests(tx)
	if err != nil {
		return sum, err
	}
	if bad := sum.tally.merge(carried); bad != nil {
		return sum, fmt.Errorf("it does not hold the records that its sender applied as revisions %d to %d: "+
			"the sender's file was written to or is damaged; resync the sender", bad.first, bad.last)
	}
	return sum, nil
}

// continues compares a snapshot with the contents that it is to replace, record
// by record: a snapshot that replaces is a jump, and only if both are of one
// history does it lead where following would have led. What both must hold:
//
//   - every record above both floors, up to what is applied here;
//   - every record that the snapshot has kept at or below its compaction revision,
//     up to what is applied here: it was kept because it was current, and if it is
//     not current here, a later revision was lost there.
//
// left is the revision at which the snapshot's history is known to have left that of
// the contents, at or behind what is applied here; 0 if both are of one origin. Up
// to there the snapshot's lacks nothing, whatever has raised its revisions later.
//
// It reports whether anything could be compared. A difference is a
// *heliograph.DivergedError. A snapshot that was made while a compaction was under
// way may hold more than what is current, and is refused; another will do. The
// caller holds applyMu.
func (s *Store) continues(old *contents, sum summary, left int64, tx *bolt.Tx) (proven bool, err error) {
	if sum.bumped > old.applied.Load() && (left == 0 || sum.bumped <= left) {
		return false, &heliograph.DivergedError{Rev: old.applied.Load() + 1, Why: fmt.Sprintf(
			"the upstream was restored from a backup and its revisions raised to %d: what the backup lacks cannot be told; "+
				"helio resync to follow it as it is now", sum.bumped)}
	}
	if !sum.settled && sum.compacted > old.compacted.Load() {
		return false, fmt.Errorf("it was made while its compaction at revision %d was under way and cannot be compared with what it would replace: another has to be made", sum.compacted)
	}
	blocks := sum.tally
	for _, b := range old.digests.view().blocks {
		got, ok := blocks.block(b.Block)
		if ok && got != b.Sum {
			return false, otherHistory(max(b.First(), firstRev), b.Last())
		}
		proven = proven || ok
	}
	s.commit(old) // so that the scan is in order: what is not committed would come last
	m := merger{
		applied: old.applied.Load(), compacted: old.compacted.Load(),
		complete: max(old.floor.Load(), sum.floor), kv: old.epoch.kv,
		cursor: tx.Bucket(schema.Key.Name()).Cursor(),
	}
	if sum.compacted >= m.compacted {
		m.current = min(sum.compacted, m.applied)
	}
	m.key, m.value = m.cursor.First()
	read := old.be.ConcurrentReadTx()
	read.RLock()
	defer read.RUnlock()
	if err := read.UnsafeForEach(schema.Key, m.visit); err != nil && !errors.Is(err, errStop) {
		return false, err
	}
	if err := m.rest(); err != nil {
		return false, err
	}
	return proven || m.matched, nil
}

// merger walks through the records of a snapshot beside those of the contents.
type merger struct {
	applied, compacted int64 // of the contents
	complete           int64 // both have all records above this, up to applied
	// current: what the snapshot holds at or below this revision was current at
	// it; 0 if that is not known.
	current int64
	matched bool
	kv      mvcc.KV // of the contents

	cursor     *bolt.Cursor // of the snapshot, at key
	key, value []byte
}

// visit takes the next record of the contents.
func (m *merger) visit(key, value []byte) error {
	for m.key != nil && bytes.Compare(m.key, key) < 0 {
		if err := m.onlyTheirs(); err != nil {
			return err
		}
		m.key, m.value = m.cursor.Next()
	}
	rk, err := heliograph.ParseRevisionKey(key)
	if err != nil {
		return err
	}
	switch {
	case rk.Main > m.applied:
		return errStop
	case bytes.Equal(m.key, key):
		if !bytes.Equal(m.value, value) {
			return otherHistory(rk.Main, rk.Main)
		}
		if err := m.mustBeCurrent(rk); err != nil {
			return err
		}
		m.matched = true
		m.key, m.value = m.cursor.Next()
	case rk.Main > m.complete:
		return otherHistory(rk.Main, rk.Main)
	}
	return nil
}

// rest takes the records of the snapshot behind the last of the contents.
func (m *merger) rest() error {
	for ; m.key != nil; m.key, m.value = m.cursor.Next() {
		if err := m.onlyTheirs(); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
	return nil
}

// onlyTheirs judges a record of the snapshot that the contents do not hold.
func (m *merger) onlyTheirs() error {
	rk, err := heliograph.ParseRevisionKey(m.key)
	switch {
	case err != nil:
		return err
	case rk.Main > m.applied:
		return errStop
	case rk.Main > m.complete:
	case rk.Main <= m.current && len(m.value) > 0 && (!rk.Delete || rk.Main > m.compacted):
		// A tombstone at its compaction revision stays in some versions of etcd.
	default:
		return nil
	}
	return otherHistory(rk.Main, rk.Main)
}

// mustBeCurrent judges a record that both hold and that the snapshot has kept.
func (m *merger) mustBeCurrent(rk heliograph.RevisionKey) error {
	if rk.Main > m.current || rk.Delete || len(m.value) == 0 {
		return nil
	}
	kv, err := decodeKeyValue(m.value)
	if err != nil {
		return err
	}
	r, err := m.kv.Range(context.Background(), kv.key, nil, mvcc.RangeOptions{Rev: m.current, FastKeysOnly: true})
	switch {
	case err != nil:
		return err
	case len(r.KVs) == 0:
		return otherHistory(rk.Main+1, m.current) // it was deleted somewhere there
	case r.KVs[0].ModRevision != rk.Main:
		return otherHistory(r.KVs[0].ModRevision, r.KVs[0].ModRevision)
	}
	return nil
}

func otherHistory(first, last int64) error {
	where := fmt.Sprintf("revision %d", first)
	if last > first {
		where = fmt.Sprintf("revisions %d to %d", first, last)
	}
	return &heliograph.DivergedError{Rev: first, Why: fmt.Sprintf(
		"the upstream's snapshot holds other records in %s than this replica: the upstream was restored from a backup or created anew; "+
			"check that it is the right one, or helio resync to follow it as it is now", where)}
}
