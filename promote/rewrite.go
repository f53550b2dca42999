package promote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
)

// buckets is a transaction that speaks of buckets as etcd does.
type buckets struct{ tx *bolt.Tx }

// recreate leaves the bucket empty.
func (b buckets) recreate(bucket backend.Bucket) error { return b.recreateName(bucket.Name()) }

func (b buckets) recreateName(name []byte) error {
	if err := b.tx.DeleteBucket(name); err != nil && b.tx.Bucket(name) != nil {
		return fmt.Errorf("bucket %s: %w", name, err)
	}
	_, err := b.tx.CreateBucket(name)
	return err
}

func (b buckets) put(bucket backend.Bucket, key, value []byte) error {
	return b.tx.Bucket(bucket.Name()).Put(key, value)
}

// rewrite is everything that changes in the replica's file.
type rewrite struct {
	survey survey
	fork   heliograph.Fork
	member *member // nil: membership is left to a restore
}

// run changes the file at path in one transaction, durable on return. After an
// error of the commit itself nobody knows whether it has happened.
func (r rewrite) run(path string) (err error) {
	if _, err := os.Stat(path); err != nil { // bbolt would create the file
		return err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: openWait, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	// Opening a file in which etcd has left no list of free pages means to walk
	// all pages. We have just done that: with the list, etcd need not do it again.
	db.NoFreelistSync = false
	return db.Update(func(tx *bolt.Tx) error { return r.apply(buckets{tx}) })
}

func (r rewrite) apply(b buckets) error {
	if r.member != nil {
		if err := r.member.install(b); err != nil {
			return err
		}
	}
	return errors.Join(r.applyLeases(b), b.recreate(schema.Alarm), r.endDowngrade(b), r.applyBump(b), r.applyOwn(b))
}

// endDowngrade drops a downgrade that the old cluster had under way.
func (r rewrite) endDowngrade(b buckets) error {
	if cluster := b.tx.Bucket(schema.Cluster.Name()); cluster != nil {
		return cluster.Delete(schema.ClusterDowngradeKeyName)
	}
	return nil
}

func (r rewrite) applyLeases(b buckets) error {
	if err := b.recreate(schema.Lease); err != nil {
		return err
	}
	for _, l := range r.survey.leases {
		v, err := proto.Marshal(l)
		if err != nil {
			return err
		}
		if err := b.put(schema.Lease, binary.BigEndian.AppendUint64(nil, uint64(l.ID)), v); err != nil {
			return err
		}
	}
	return nil
}

// applyBump schedules a compaction at a revision that is ahead. At its start etcd
// takes the higher of the last record and the scheduled compaction for its
// revision and compacts up to there: the revisions between do not exist, and
// whoever watches from one of them is told to list again. etcdutl does the same
// and adds a record without a key, which is not needed for that and would be
// handed to mirrors as if somebody had written it.
func (r rewrite) applyBump(b buckets) error {
	if r.fork.Bump == 0 {
		return nil
	}
	mark := heliograph.RevisionKey{Main: r.fork.Revision + r.fork.Bump}.Append(nil)
	return b.put(schema.Meta, schema.ScheduledCompactKeyName, mark)
}

// applyOwn leaves in our bucket what a promoted database says of itself. The
// format keeps package store from taking it for a replica.
func (r rewrite) applyOwn(b buckets) error {
	forks := append(r.survey.forks[:len(r.survey.forks):len(r.survey.forks)], r.fork)
	list, err := heliograph.EncodeForks(forks)
	if err != nil {
		return err
	}
	if err := b.recreateName(ownBucket); err != nil {
		return err
	}
	own := b.tx.Bucket(ownBucket)
	return errors.Join(
		own.Put(formatKey, []byte(promotedFormat)),
		own.Put(originKey, []byte(r.survey.origin.String())),
		own.Put(forksKey, list),
	)
}

// committed reports whether the transaction of the promotion with that token has
// happened in the file at path.
func committed(path, token string) (yes bool, err error) {
	err = view(path, func(tx *bolt.Tx) error {
		own := tx.Bucket(ownBucket)
		if own == nil || string(own.Get(formatKey)) != promotedFormat {
			return nil
		}
		forks, err := heliograph.ParseForks(own.Get(forksKey))
		if err != nil {
			return err
		}
		if len(forks) == 0 || forks[len(forks)-1].Token != token {
			return errors.New("it was promoted, but not by the promotion that the record speaks of")
		}
		yes = true
		return nil
	})
	return yes, err
}
