package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/heliograph/heliograph"
)

// history is what a replica offers that can read its revisions back. One that
// cannot is not compared with etcd by content.
type history interface {
	// History visits the records of whole revisions from rev on, in order,
	// until maxBytes have been passed. key and value are valid during the
	// call only. It returns heliograph.ErrCompacted if rev is compacted.
	History(rev int64, maxBytes int, visit func(key, value []byte) error) (last int64, err error)
}

// match compares the first revision that etcd sends on a connection, which
// should be the replica's last, with what the replica holds: two etcd clusters
// can have the same id and be past the same revision and be different all the
// same, such as one that was created anew. It reports whether batch is that
// revision, which is not to be applied again.
func (f *follower) match(ctx context.Context, batch heliograph.Batch) (again bool, err error) {
	applied := f.replica.Applied()
	var theirs []heliograph.Record
	if again = batch.Rev == applied; again {
		theirs = batch.Records
	}
	ours, known, err := f.ours(applied)
	if err != nil {
		return again, fmt.Errorf("read revision %d back: %w", applied, err)
	}
	if known && slices.EqualFunc(theirs, ours, equalRecords) || !known && again {
		return again, nil
	}
	// At its compaction revision etcd may have fewer records than there were.
	compacted, err := f.c.compactedTo(ctx, applied)
	if err != nil || compacted {
		return again, err
	}
	return again, &heliograph.DivergedError{Rev: applied, Why: "etcd does not hold what the replica holds there: " +
		"etcd was created anew or restored from a backup; resync to follow it as it is now"}
}

// ours returns the replica's records of a revision as etcd's watch would tell
// of them, if it can.
func (f *follower) ours(rev int64) (records []heliograph.Record, known bool, err error) {
	h, ok := f.replica.(history)
	if !ok {
		return nil, false, nil
	}
	last, err := h.History(rev, 1, func(key, value []byte) error {
		if len(value) == 0 {
			return nil // `etcdutl snapshot restore --bump-revision` leaves such a record
		}
		records = append(records, heliograph.Record{Key: bytes.Clone(key), Value: bytes.Clone(value)})
		return nil
	})
	if errors.Is(err, heliograph.ErrCompacted) {
		return nil, false, nil
	}
	return records, last == rev, err
}

func equalRecords(a, b heliograph.Record) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
}
