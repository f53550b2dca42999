package store

import (
	"encoding/binary"
	"hash/crc32"
	"hash/maphash"
	"slices"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/heliograph/heliograph"
)

// hasher computes etcd's HashKV at a revision as if the history were compacted at
// another, which may be further than it is. What etcd hashes then is: every record
// above the compaction revision, up to rev; and at or below it those that are
// current at rev, or, if no key is left at rev, those that were current at the
// compaction revision.
//
// Whether a record is current is told by what came later: one pass over the records
// above the history's own compaction revision notes for each key where it was
// written last. A key that is not noted has one record, which is current. The
// second pass hashes.
//
// Both read in pieces, between which others may write. That the pieces fit together
// is up to the caller: up to rev all is committed, no compaction is under way or
// comes, and if the contents are replaced, the hash is to be dropped.
type hasher struct {
	be        backend.Backend
	base      int64        // where the history is compacted; 0 if never
	compacted int64        // where it is taken to be compacted; at least base
	rev       int64        // the hash is of what was there; at least compacted
	current   int64        // where a record up to compacted must be current: rev, or compacted
	goOn      func() error // asked between pieces; its error ends the hash

	seeds [2]maphash.Seed
	last  map[fingerprint]int64 // where a key was written last, above base and up to current
	hash  uint32
}

// fingerprint stands for a key. That two keys have the same is not to be expected
// in the life of the universe, and, as the seeds are random, nobody can make it so.
type fingerprint [2]uint64

// hashChunkBytes is after how much a lock is let go.
const hashChunkBytes = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h *hasher) sum() (uint32, error) {
	if h.compacted > 0 {
		h.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
		h.last = make(map[fingerprint]int64)
		if err := h.each(h.base+1, h.current, h.note); err != nil {
			return 0, err
		}
	}
	h.hash = crc32.Update(0, castagnoli, schema.Key.Name())
	err := h.each(0, h.rev, h.add)
	return h.hash, err
}

// note takes down where a key was written, or deleted.
func (h *hasher) note(rk heliograph.RevisionKey, _, value []byte) {
	if f, ok := h.fingerprint(value); ok {
		h.last[f] = rk.Main
	}
}

// add hashes the record if etcd does.
func (h *hasher) add(rk heliograph.RevisionKey, key, value []byte) {
	if rk.Main <= h.compacted && (rk.Delete || !h.isCurrent(rk, value)) {
		return
	}
	h.hash = crc32.Update(crc32.Update(h.hash, castagnoli, key), castagnoli, value)
}

func (h *hasher) isCurrent(rk heliograph.RevisionKey, value []byte) bool {
	if len(h.last) == 0 {
		return true
	}
	// What cannot be read is damaged, and then the hash has to differ from etcd's.
	f, ok := h.fingerprint(value)
	if !ok {
		return true
	}
	last, noted := h.last[f]
	return !noted || last == rk.Main // no revision changes a key twice
}

// fingerprint returns that of the key in a record's value, which stands first in it
// (see decodeKeyValue), false if it cannot be read. A value without anything in it
// is of the empty key, with which etcdutl raises the revision.
func (h *hasher) fingerprint(value []byte) (fingerprint, bool) {
	var key []byte
	if len(value) > 0 {
		n, width := binary.Uvarint(value[1:])
		if value[0] != 1<<3|2 || width <= 0 || n > uint64(len(value)-1-width) {
			return fingerprint{}, false
		}
		key = value[1+width:][:n]
	}
	return fingerprint{maphash.Bytes(h.seeds[0], key), maphash.Bytes(h.seeds[1], key)}, true
}

// each visits the records of the revisions from one to another, in order. Keys and
// values are valid during the visit only, which must not use the backend.
func (h *hasher) each(from, to int64, visit func(rk heliograph.RevisionKey, key, value []byte)) error {
	next, end := heliograph.RevisionKey{Main: from}.Append(nil), heliograph.RevisionKey{Main: to + 1}.Append(nil)
	for next != nil {
		if err := h.goOn(); err != nil {
			return err
		}
		var err error
		if next, err = h.chunk(next, end, visit); err != nil {
			return err
		}
	}
	return nil
}

// chunk visits some records and returns where to go on, nil at the end.
func (h *hasher) chunk(next, end []byte, visit func(rk heliograph.RevisionKey, key, value []byte)) ([]byte, error) {
	tx := h.be.ReadTx()
	tx.RLock()
	defer tx.RUnlock()
	// Nothing of this is uncommitted, so the backend leaves nothing out (see
	// historyReader).
	keys, values := tx.UnsafeRange(schema.Key, next, end, historyChunk)
	size := 0
	for i, key := range keys {
		rk, err := heliograph.ParseRevisionKey(key)
		if err != nil {
			return nil, err
		}
		visit(rk, key, values[i])
		if size += len(key) + len(values[i]); size >= hashChunkBytes || i == historyChunk-1 {
			return append(slices.Clone(key), 0), nil
		}
	}
	return nil, nil
}
