package promote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
)

// The bucket that package store keeps beside etcd's, and this package after it.
var (
	ownBucket = []byte("heliograph")
	formatKey = []byte("format")
	originKey = []byte("origin")
	forksKey  = []byte("forks")
	authKey   = []byte("auth") // of package store: what the source has said of its access control
)

const (
	replicaFormat  = "1" // what package store writes and opens
	promotedFormat = "promoted"
)

// openWait is how long to wait for whoever else has a database file open.
const openWait = 5 * time.Second

// view opens the file read-only and shows it to f. bbolt panics on pages that make
// no sense, and a file that is too short faults: both become errors.
func view(path string, f func(tx *bolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its pages are damaged: %v", p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: openWait})
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

// survey is what a replica's file holds, as far as promotion must know.
type survey struct {
	origin heliograph.Origin
	forks  []heliograph.Fork
	rev    int64
	leases []*leasepb.Lease // as they are to be; every lease that a key hangs on is there
	// defaulted are those of leases whose TTL the file did not know.
	defaulted int
	// outdated is why the users and roles in it are not the source's; "" if they are.
	outdated string
}

// examine reads the whole file and refuses what is not a whole replica that this
// program's etcd can serve.
func examine(tx *bolt.Tx, unknownTTL int64) (s survey, err error) {
	own, keys, meta := tx.Bucket(ownBucket), tx.Bucket(schema.Key.Name()), tx.Bucket(schema.Meta.Name())
	switch {
	case keys == nil || meta == nil:
		return s, errors.New("it is not an etcd database: bucket key or meta is missing")
	case own == nil:
		return s, errors.New("it is not a replica's file: it does not say where its data comes from")
	}
	switch format := string(own.Get(formatKey)); format {
	case replicaFormat:
	case promotedFormat:
		return s, errors.New("it is promoted already")
	default:
		return s, fmt.Errorf("it has format %.20q, and this program knows %q: use the program that wrote it", format, replicaFormat)
	}
	if s.origin, err = heliograph.ParseOrigin(string(own.Get(originKey))); err != nil {
		return s, err
	}
	if s.forks, err = heliograph.ParseForks(own.Get(forksKey)); err != nil {
		return s, err
	}
	if err := checkVersions(tx); err != nil {
		return s, err
	}
	if s.outdated, err = outdatedUsers(tx); err != nil {
		return s, err
	}
	if s.rev, err = compactRevision(meta); err != nil {
		return s, err
	}
	attached, last, err := scan(keys)
	if err != nil {
		return s, err
	}
	s.rev = max(s.rev, last, 1)
	s.leases, s.defaulted, err = renew(tx.Bucket(schema.Lease.Name()), attached, unknownTTL)
	return s, err
}

// checkVersions refuses data of a newer etcd than the one that would serve it:
// etcd would end the process over it.
func checkVersions(tx *bolt.Tx) error {
	cluster := ""
	if b := tx.Bucket(schema.Cluster.Name()); b != nil {
		cluster = string(b.Get(schema.ClusterClusterVersionKeyName))
	}
	for what, v := range map[string]string{
		"its storage version": string(tx.Bucket(schema.Meta.Name()).Get(schema.MetaStorageVersionName)),
		"its cluster version": cluster,
	} {
		var major, minor, ownMajor, ownMinor int
		if v == "" {
			continue
		}
		if _, err := fmt.Sscanf(v, "%d.%d", &major, &minor); err != nil {
			return fmt.Errorf("%s is %.20q, which is none", what, v)
		}
		if _, err := fmt.Sscanf(EtcdVersion(), "%d.%d", &ownMajor, &ownMinor); err != nil {
			return fmt.Errorf("version of the embedded etcd %q: %w", EtcdVersion(), err)
		}
		if major > ownMajor || major == ownMajor && minor > ownMinor {
			return fmt.Errorf("%s is %s, and this program's etcd is %s: use a newer helio, or export a snapshot for a newer etcd", what, v, EtcdVersion())
		}
	}
	return nil
}

// outdatedUsers returns why the users and roles in the file are not those of the
// source, "" if they are.
func outdatedUsers(tx *bolt.Tx) (string, error) {
	source, err := heliograph.ParseAccessControl(tx.Bucket(ownBucket).Get(authKey))
	if err != nil || source == nil { // never told: what to make of that is the node's to say
		return "", err
	}
	var here heliograph.AccessControl
	if b := tx.Bucket(schema.Auth.Name()); b != nil {
		here = heliograph.EtcdAccessControl(b.Get(schema.AuthEnabledKeyName), b.Get(schema.AuthRevisionKeyName))
	}
	return here.Outdated(source), nil
}

// compactRevision returns the compaction revision, finished or not; 0 if none.
func compactRevision(meta *bolt.Bucket) (rev int64, err error) {
	for _, name := range [][]byte{schema.FinishedCompactKeyName, schema.ScheduledCompactKeyName} {
		mark := meta.Get(name)
		if mark == nil {
			continue
		}
		rk, err := heliograph.ParseRevisionKey(mark)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		rev = max(rev, rk.Main)
	}
	return rev, nil
}

// scan reads every record in order of revision. It returns the leases that a
// key hangs on in the end, and the last revision. Its errors name no key.
func scan(keys *bolt.Bucket) (attached map[int64]struct{}, last int64, err error) {
	// Only keys with a lease are remembered, as etcd itself does at its start.
	byKey := make(map[string]int64)
	c := keys.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		rk, err := heliograph.ParseRevisionKey(k)
		if err != nil {
			return nil, 0, err
		}
		last = rk.Main
		key, id, err := keyAndLease(v)
		if err != nil {
			return nil, 0, fmt.Errorf("record %d/%d: %w", rk.Main, rk.Sub, err)
		}
		switch {
		case id != 0 && !rk.Delete:
			byKey[string(key)] = id
		case len(byKey) > 0:
			delete(byKey, string(key))
		}
	}
	attached = make(map[int64]struct{})
	for _, id := range byKey {
		attached[id] = struct{}{}
	}
	return attached, last, nil
}

// Fields of mvccpb.KeyValue.
const (
	fieldKey   protowire.Number = 1
	fieldLease protowire.Number = 6
)

// keyAndLease picks two fields out of a marshalled mvccpb.KeyValue; key points
// into b. Decoding the whole message would take longer than all the rest.
func keyAndLease(b []byte) (key []byte, id int64, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, 0, fmt.Errorf("value: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == fieldKey && typ == protowire.BytesType:
			key, n = protowire.ConsumeBytes(b)
		case num == fieldLease && typ == protowire.VarintType:
			var u uint64
			u, n = protowire.ConsumeVarint(b)
			id = int64(u)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return nil, 0, fmt.Errorf("value: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return key, id, nil
}

// renew returns the leases of the bucket, which may be nil, and those that are
// attached and not in it, each with its full TTL to go.
func renew(bucket *bolt.Bucket, attached map[int64]struct{}, unknownTTL int64) (out []*leasepb.Lease, defaulted int, err error) {
	add := func(l *leasepb.Lease) {
		if l.TTL <= 0 {
			l.TTL = unknownTTL
			defaulted++
		}
		l.RemainingTTL = 0 // what etcd calls none: the TTL as granted
		out = append(out, l)
	}
	if bucket != nil {
		err = bucket.ForEach(func(k, v []byte) error {
			l := new(leasepb.Lease)
			if err := proto.Unmarshal(v, l); err != nil || len(k) != 8 || int64(binary.BigEndian.Uint64(k)) != l.ID {
				return fmt.Errorf("lease %x cannot be read", k)
			}
			add(l)
			delete(attached, l.ID)
			return nil
		})
	}
	for id := range attached {
		add(&leasepb.Lease{ID: id})
	}
	return out, defaulted, err
}

// Forks returns the forks that the database file at path remembers, oldest first;
// none if it was never promoted. The file must not be open for writing: a member
// that runs has it open.
func Forks(path string) (forks []heliograph.Fork, err error) {
	err = view(path, func(tx *bolt.Tx) (err error) {
		if own := tx.Bucket(ownBucket); own != nil {
			forks, err = heliograph.ParseForks(own.Get(forksKey))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forks of %s: %w", path, err)
	}
	return forks, nil
}
