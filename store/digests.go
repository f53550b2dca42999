package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"

	"github.com/heliograph/heliograph"
)

// digests are those of one open file. They change with the revision that they
// count, under the lock of the backend's write transaction, and are written down
// by whichever commit makes that revision durable: one cannot be there without
// the other.
//
// Three keys of our bucket hold them, the last once for each block:
//
//	tally                at u64 │ from u64 │ sum u64
//	floor                the same, at the compaction revision
//	block/ number u64    sum u64
type digests struct {
	mu      sync.Mutex
	staged  tally                   // as of the revision written last; its blocks are not used
	seen    tally                   // as of the revision applied last
	floor   tally                   // at the compaction revision: what its block held up to there
	done    *heliograph.BlockDigest // completed by staged and not in seen yet
	unsaved []heliograph.BlockDigest
	dropped []int64
	dirty   bool
}

var (
	tallyKey    = []byte("tally")
	floorKey    = []byte("floor")
	blockPrefix = []byte("block/")
)

func blockKey(k int64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(blockPrefix), uint64(k))
}

func (t *tally) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(t.at))
	b = binary.BigEndian.AppendUint64(b, uint64(t.from))
	return binary.BigEndian.AppendUint64(b, t.sum)
}

func decodeTally(v []byte) (t tally, err error) {
	if v == nil {
		return tally{}, nil
	}
	if len(v) != 24 {
		return tally{}, fmt.Errorf("a running digest has %d bytes: want 24", len(v))
	}
	t.at = int64(binary.BigEndian.Uint64(v))
	t.from = int64(binary.BigEndian.Uint64(v[8:]))
	t.sum = binary.BigEndian.Uint64(v[16:])
	if t.at < 1 || t.from > t.at+1 || t.from <= t.at && t.from/heliograph.DigestBlock != t.at/heliograph.DigestBlock {
		return tally{}, fmt.Errorf("a running digest is of revisions %d to %d, which cannot be", t.from, t.at)
	}
	return t, nil
}

// begin sets the digests of a file that holds stored, and t in truth.
func (d *digests) begin(t, stored, floor tally) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.floor = floor
	d.staged, d.seen, d.done, d.dirty = t, t, nil, true
	d.staged.blocks = nil
	d.unsaved, d.dropped = nil, nil
	for _, b := range t.blocks {
		if _, ok := stored.block(b.Block); !ok {
			d.unsaved = append(d.unsaved, b)
		}
	}
	for _, b := range stored.blocks {
		if _, ok := t.block(b.Block); !ok {
			d.dropped = append(d.dropped, b.Block)
		}
	}
}

// leave leaves what is written down as it is: of a damaged file it is the evidence.
// Nothing may be written to such a file, nor compacted.
func (d *digests) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsaved, d.dropped, d.dirty = nil, nil, false
}

// compact keeps what the block of a compaction revision has held, before the
// records go: else nobody could tell later whether the rest of it is right.
func (d *digests) compact(floor tally) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.floor, d.dirty = floor, true
}

// write counts the next revision. It is called while the revision's transaction
// is open, so that no commit comes between.
func (d *digests) write(sum uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	done, ok := d.staged.next()
	d.staged.sum += sum
	d.dirty = true
	d.done = nil
	if ok {
		d.done = &done
		d.unsaved = append(d.unsaved, done)
	}
}

// publish shows readers what write has counted. It is called when the revision
// is applied, so that nobody sees a digest of what cannot be read yet.
func (d *digests) publish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done != nil {
		// Readers may hold the old list.
		d.seen.blocks = slices.Clone(d.seen.blocks)
		d.dropped = append(d.dropped, d.seen.keep(*d.done)...)
		d.done = nil
	}
	d.seen.at, d.seen.from, d.seen.sum = d.staged.at, d.staged.from, d.staged.sum
}

// view returns the digests as of the applied revision; not to be changed.
func (d *digests) view() tally {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

// OnPreCommitUnsafe implements [backend.Hooks].
func (d *digests) OnPreCommitUnsafe(tx backend.UnsafeReadWriter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.dirty {
		return
	}
	d.dirty = false
	for _, b := range d.unsaved {
		tx.UnsafePut(own, blockKey(b.Block), binary.BigEndian.AppendUint64(nil, b.Sum))
	}
	for _, k := range d.dropped {
		tx.UnsafeDelete(own, blockKey(k))
	}
	d.unsaved, d.dropped = nil, nil
	tx.UnsafePut(own, tallyKey, d.staged.encode())
	if d.floor.at > 0 {
		tx.UnsafePut(own, floorKey, d.floor.encode())
	}
}

// readDigests reads what a file has written down of its digests; nothing, if it
// was not written by a store that has them.
func readDigests(tx *bolt.Tx) (t tally, err error) {
	b := tx.Bucket(own.Name())
	if b == nil {
		return tally{}, nil
	}
	if t, err = decodeTally(b.Get(tallyKey)); err != nil {
		return tally{}, err
	}
	c := b.Cursor()
	for k, v := c.Seek(blockPrefix); bytes.HasPrefix(k, blockPrefix); k, v = c.Next() {
		if len(k) != len(blockPrefix)+8 || len(v) != 8 || len(t.blocks) >= maxKeptBlocks {
			return tally{}, fmt.Errorf("the digests of blocks cannot be read at %x", k)
		}
		t.blocks = append(t.blocks, heliograph.BlockDigest{
			Block: int64(binary.BigEndian.Uint64(k[len(blockPrefix):])),
			Sum:   binary.BigEndian.Uint64(v),
		})
	}
	return t, nil
}

// readFloor returns what the records above a compaction revision are counted on
// top of.
func readFloor(tx *bolt.Tx, compacted int64) (t tally, err error) {
	if b := tx.Bucket(own.Name()); b != nil {
		if t, err = decodeTally(b.Get(floorKey)); err != nil {
			return tally{}, err
		}
	}
	if t.at != compacted {
		t = tally{} // of another compaction: a crash came between, or it is not ours
	}
	return t, nil
}

// maxKeptBlocks is above what [tally.thin] leaves of any history: 64, and 32 for
// each doubling up to 2^53 blocks.
const maxKeptBlocks = 4096
