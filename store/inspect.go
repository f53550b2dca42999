package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
)

// summary is what a database file holds.
type summary struct {
	head      int64 // its revision; 1 if nothing was ever written
	compacted int64 // its compaction revision, finished or not; 0 if none
	// floor is the revision above which the history has no gap. It is above
	// compacted only in a file whose revisions were bumped by a restore.
	floor int64
	ttl   map[int64]int64 // lease id to granted seconds
	tally tally           // of the records above floor
	base  tally           // what it began with; zero if with nothing
	// settled: no compaction was under way when the file was made, so that
	// below compacted nothing is left but what is current there.
	settled bool
	bumped  int64 // the revision to which a restore has raised it; 0 if none has
	access  heliograph.AccessControl
}

// view opens the file read-only and shows it to f. bbolt panics on pages that
// make no sense, and a file that is too short faults: both become errors.
func view(path string, timeout time.Duration, f func(tx *bolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its pages are damaged: %v", p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: timeout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bolt.Tx) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return fmt.Errorf("it is cut off: %d of %d bytes are there", info.Size(), tx.Size())
		}
		return f(tx)
	})
}

// inspectHead reads no more than the revision and the compaction revision.
func inspectHead(tx *bolt.Tx) (head, compacted int64, err error) {
	meta, keys := tx.Bucket(schema.Meta.Name()), tx.Bucket(schema.Key.Name())
	if meta == nil || keys == nil {
		return 0, 0, errors.New("it is not an etcd database: bucket key or meta is missing")
	}
	for _, name := range [][]byte{schema.FinishedCompactKeyName, schema.ScheduledCompactKeyName} {
		mark := meta.Get(name)
		if mark == nil {
			continue
		}
		rk, err := heliograph.ParseRevisionKey(mark)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		compacted = max(compacted, rk.Main)
	}
	head = max(1, compacted)
	if k, _ := keys.Cursor().Last(); k != nil {
		rk, err := heliograph.ParseRevisionKey(k)
		if err != nil {
			return 0, 0, err
		}
		head = max(head, rk.Main)
	}
	return head, compacted, nil
}

// inspect reads every page and checks every record, because MVCC ends the
// process over a record that it cannot read.
func inspect(tx *bolt.Tx) (sum summary, err error) {
	if sum.head, sum.compacted, err = inspectHead(tx); err != nil {
		return sum, err
	}
	sum.access = ownUsers(tx)
	sum.floor = sum.compacted
	sum.ttl = make(map[int64]int64)
	if sum.base, err = readFloor(tx, sum.compacted); err != nil {
		return sum, err
	}
	sum.tally = sum.base
	if sum.base.at == 0 {
		sum.tally.restart(max(sum.compacted, 1))
	}
	meta := tx.Bucket(schema.Meta.Name())
	sum.settled = bytes.Equal(meta.Get(schema.FinishedCompactKeyName), meta.Get(schema.ScheduledCompactKeyName))

	last := heliograph.RevisionKey{Main: max(sum.compacted, 1)}
	c := tx.Bucket(schema.Key.Name()).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if rk, ok := isBump(k, v); ok {
			sum.bumped, sum.floor, last = rk.Main, max(sum.floor, rk.Main), rk
			sum.tally.restart(sum.floor)
			continue
		}
		rk, _, err := decodeRecord(k, v)
		if err != nil {
			return sum, err
		}
		if rk.Main <= sum.compacted {
			continue
		}
		switch {
		case rk.Main == last.Main && rk.Sub == last.Sub+1:
		case rk.Main == last.Main+1 && rk.Sub == 0:
		case rk.Sub == 0:
			sum.floor = rk.Main - 1
			sum.tally.restart(sum.floor)
		default:
			sum.floor = rk.Main
			sum.tally.restart(sum.floor)
		}
		last = rk
		if rk.Main > sum.floor {
			sum.tally.record(rk.Main, recordDigest(k, v))
		}
	}
	return sum, tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		switch string(name) {
		case string(schema.Key.Name()):
			return nil
		case string(schema.Lease.Name()):
			return b.ForEach(func(k, v []byte) error {
				var l leasepb.Lease
				if err := proto.Unmarshal(v, &l); err != nil || len(k) != 8 || int64(binary.BigEndian.Uint64(k)) != l.ID {
					return fmt.Errorf("lease %x cannot be read", k)
				}
				sum.ttl[l.ID] = l.TTL
				return nil
			})
		}
		return b.ForEach(func(_, _ []byte) error { return nil })
	})
}

// isBump recognises the record without a value with which `etcdutl snapshot restore
// --bump-revision` raises the revision.
func isBump(key, value []byte) (heliograph.RevisionKey, bool) {
	if len(value) > 0 {
		return heliograph.RevisionKey{}, false
	}
	rk, err := heliograph.ParseRevisionKey(key)
	return rk, err == nil && !rk.Delete
}
