package store

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"

	"github.com/heliograph/heliograph"
)

// ownBucket is the one bucket in the file that is not etcd's.
//
//	format       "1"
//	origin       heliograph.Origin, as text
//	forks        what heliograph.EncodeForks writes; missing if there are none
//	compactions  what wishes.encode writes; missing if there are none
//	auth         heliograph.AccessControl; missing while not known
//	unequal      what encodeUnequal writes; missing if no verification found a difference
//	tally, block/…  see digests
type ownBucket struct{}

var own backend.Bucket = ownBucket{}

// ID is a number that etcd gives to none of its buckets (1 to 100).
func (ownBucket) ID() backend.BucketID    { return 7400 }
func (ownBucket) Name() []byte            { return []byte("heliograph") }
func (ownBucket) String() string          { return "heliograph" }
func (ownBucket) IsSafeRangeBucket() bool { return false }

const formatVersion = "1"

var (
	formatKey      = []byte("format")
	originKey      = []byte("origin")
	forksKey       = []byte("forks")
	compactionsKey = []byte("compactions")
	authKey        = []byte("auth")
	unequalKey     = []byte("unequal")
)

// ownState is what the bucket holds.
type ownState struct {
	lineage heliograph.Lineage
	wishes  wishes
	auth    *heliograph.AccessControl // nil if not known
	unequal *heliograph.DivergedError // nil if nothing was found
	tally   tally
}

// writeOwn puts a fresh bucket into be: whatever a snapshot brought in its place
// was its sender's. It is durable on return.
func writeOwn(be backend.Backend, l heliograph.Lineage, a *heliograph.AccessControl) error {
	forks, err := encodeForks(l.Forks)
	if err != nil {
		return err
	}
	tx := be.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafeCreateBucket(own) // deleting what is not there would be logged as an error
	tx.UnsafeDeleteBucket(own)
	tx.UnsafeCreateBucket(own)
	tx.UnsafePut(own, formatKey, []byte(formatVersion))
	putLineage(tx, l.Origin, forks)
	putAuth(tx, a)
	tx.Unlock()
	be.ForceCommit()
	return nil
}

// encodeForks returns nil if there are none.
func encodeForks(forks []heliograph.Fork) ([]byte, error) {
	if len(forks) == 0 {
		return nil, nil
	}
	return heliograph.EncodeForks(forks)
}

// putLineage stores what the bytes are a history of, forks as encodeForks returns
// them. The caller holds the transaction's lock, so that one commit has both.
func putLineage(tx backend.BatchTx, origin heliograph.Origin, forks []byte) {
	tx.UnsafePut(own, originKey, []byte(origin.String()))
	if forks != nil {
		tx.UnsafePut(own, forksKey, forks)
	}
}

// readForks reads the forks that a file brings, whether it was an etcd's, a
// promoted etcd's or a replica's.
func readForks(tx *bolt.Tx) ([]heliograph.Fork, error) {
	b := tx.Bucket(own.Name())
	if b == nil {
		return nil, nil
	}
	return heliograph.ParseForks(b.Get(forksKey))
}

// writeWishes stores the pending compactions; durable at the next commit.
func writeWishes(be backend.Backend, w wishes) {
	tx := be.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafePut(own, compactionsKey, w.encode())
	tx.Unlock()
}

// readOwn reads the bucket. A file without one is not a store's.
func readOwn(tx *bolt.Tx) (ownState, error) {
	b := tx.Bucket(own.Name())
	if b == nil {
		return ownState{}, fmt.Errorf("it does not say where its data comes from (no bucket %q)", own)
	}
	if v := string(b.Get(formatKey)); v != formatVersion {
		return ownState{}, fmt.Errorf("it has format %.20q, and this program knows %q: use the program that wrote it", v, formatVersion)
	}
	origin, err := heliograph.ParseOrigin(string(b.Get(originKey)))
	if err != nil {
		return ownState{}, err
	}
	forks, err := readForks(tx)
	if err != nil {
		return ownState{}, err
	}
	w, err := decodeWishes(b.Get(compactionsKey))
	if err != nil {
		return ownState{}, err
	}
	a, err := heliograph.ParseAccessControl(b.Get(authKey))
	if err != nil {
		return ownState{}, err
	}
	unequal, err := decodeUnequal(b.Get(unequalKey))
	if err != nil {
		return ownState{}, err
	}
	t, err := readDigests(tx)
	if err != nil {
		return ownState{}, err
	}
	return ownState{lineage: heliograph.Lineage{Origin: origin, Forks: forks}, wishes: w, auth: a, unequal: unequal, tally: t}, nil
}
