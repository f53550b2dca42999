package heliograph

import (
	"encoding/binary"
	"fmt"
)

// Lengths of a revision key in bytes: of a put and of a delete.
const (
	PutKeyBytes    = 17
	DeleteKeyBytes = 18
)

// MaxBatchBytes is the most that the records of one revision may hold, keys
// and values added up. A revision can be far larger than one request to etcd:
// deleting a range of a million keys is one revision.
const MaxBatchBytes = 1 << 30

// Record is one change as etcd stores it, byte for byte the same in etcd's key
// bucket, in a replica and on the wire.
//
// Key is a revision key ([RevisionKey]); Value a marshalled mvccpb.KeyValue,
// which for a delete holds the user's key alone.
//
//	main revision u64 BE │ '_' │ sub revision u64 BE │ 't' if it is a delete
type Record struct {
	Key   []byte
	Value []byte
}

// Batch is everything that one revision changed, in the order of its sub
// revisions. It is never split: readers and watchers see all of it or nothing.
type Batch struct {
	Rev     int64
	Records []Record
}

// Bytes returns what the batch's records hold, keys and values added up.
func (b Batch) Bytes() int64 {
	var n int64
	for _, r := range b.Records {
		n += int64(len(r.Key) + len(r.Value))
	}
	return n
}

// RevisionKey is a decoded revision key.
type RevisionKey struct {
	Main   int64 // the revision
	Sub    int64 // its place among the changes of that revision, from 0
	Delete bool  // a tombstone
}

// Append appends the encoded key to dst.
func (k RevisionKey) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(k.Main))
	dst = append(dst, '_')
	dst = binary.BigEndian.AppendUint64(dst, uint64(k.Sub))
	if k.Delete {
		dst = append(dst, 't')
	}
	return dst
}

// ParseRevisionKey decodes a revision key. It allocates nothing unless it fails.
func ParseRevisionKey(b []byte) (RevisionKey, error) {
	if len(b) != PutKeyBytes && len(b) != DeleteKeyBytes {
		return RevisionKey{}, fmt.Errorf("revision key has %d bytes: want %d or %d", len(b), PutKeyBytes, DeleteKeyBytes)
	}
	k := RevisionKey{
		Main:   int64(binary.BigEndian.Uint64(b)),
		Sub:    int64(binary.BigEndian.Uint64(b[9:])),
		Delete: len(b) == DeleteKeyBytes,
	}
	if b[8] != '_' || k.Delete && b[17] != 't' || k.Main < 0 || k.Sub < 0 {
		return RevisionKey{}, fmt.Errorf("revision key %x is malformed", b)
	}
	return k, nil
}
