package promote_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
)

// edit changes the replica's file.
func edit(t *testing.T, dir string, f func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "default.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(f); err != nil {
		t.Fatal(err)
	}
}

// A file that this program's etcd could not serve is refused before anything is
// changed.
func TestRefusedContents(t *testing.T) {
	t.Parallel()
	replica := t.TempDir()
	fillReplica(t, replica, 100, 8, false)
	set := func(bucket, key, value string) func(tx *bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(value)) }
	}
	last := string(heliograph.RevisionKey{Main: 200}.Append(nil))
	for name, test := range map[string]struct {
		edit func(tx *bolt.Tx) error
		want string
	}{
		"newer storage":    {set("meta", "storageVersion", "3.99.0"), "use a newer helio"},
		"newer cluster":    {set("cluster", "clusterVersion", "4.0.0"), "use a newer helio"},
		"no version":       {set("cluster", "clusterVersion", "new"), "which is none"},
		"other format":     {set("heliograph", "format", "2"), "use the program that wrote it"},
		"no origin":        {set("heliograph", "origin", ""), "origin"},
		"forks unreadable": {set("heliograph", "forks", "{"), "forks"},
		"bad revision key": {set("key", "x", ""), "revision key"},
		"bad record":       {set("key", last, "\xff"), "record 200/0"},
		"bad compaction":   {set("meta", "finishedCompactRev", "x"), "finishedCompactRev"},
		"bad lease":        {set("lease", "x", ""), "lease"},
		"no key bucket":    {func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("key")) }, "not an etcd database"},
		"same etcd id": {func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("heliograph")).Put([]byte("origin"), fmt.Appendf(nil, "prod-us/default@%s", etcdIDOf(t, replica, "chosen")))
		}, "use another token"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			copyTree(t, replica, dir)
			edit(t, dir, test.edit)
			before := tree(t, dir)
			cfg := config(dir)
			cfg.Token = "chosen"
			_, err := promote.Promote(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if after := tree(t, dir); after != before {
				t.Errorf("the directory was\n%sand is\n%s", before, after)
			}
		})
	}
}

// etcdIDOf returns the cluster id that a promotion with that token makes.
func etcdIDOf(t *testing.T, replica, token string) heliograph.EtcdID {
	t.Helper()
	dir := t.TempDir()
	copyTree(t, replica, dir)
	cfg := config(dir)
	cfg.Token = token
	return mustPromote(t, cfg).EtcdID
}

// A database that forked before keeps that, up to a bound.
func TestForksAdd(t *testing.T) {
	dir := t.TempDir()
	fillReplica(t, dir, 100, 8, false)
	var old []heliograph.Fork
	for i := range heliograph.MaxForks {
		old = append(old, heliograph.Fork{Origin: fillOrigin.String(), Revision: int64(i + 1), Cluster: "eu", Database: database, Token: fmt.Sprint(i)})
	}
	list, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, dir, func(tx *bolt.Tx) error { return tx.Bucket([]byte("heliograph")).Put([]byte("forks"), list) })
	rec := mustPromote(t, config(dir))
	got, err := promote.Forks(filepath.Join(promote.EtcdDir(dir, database), "member", "snap", "db"))
	if n := len(got); err != nil || n != heliograph.MaxForks || got[0] != old[1] || got[n-1] != rec.Fork {
		t.Errorf("%d forks, %v: want the last %d and the new one", n, err, heliograph.MaxForks-1)
	}
}

// The decoder of records agrees with protobuf's own about whatever that accepts.
func FuzzKeyAndLease(f *testing.F) {
	for _, kv := range []*mvccpb.KeyValue{
		{Key: []byte("k"), Value: []byte("v"), CreateRevision: 2, ModRevision: 3, Version: 4, Lease: 5},
		{Key: []byte("k")},
		{Lease: -1},
	} {
		b, err := proto.Marshal(kv)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, id, err := promote.KeyAndLease(b)
		var kv mvccpb.KeyValue
		if proto.Unmarshal(b, &kv) != nil {
			return // the first error found is enough; more lenient is no harm
		}
		if err != nil {
			t.Fatalf("protobuf accepts it: %v", err)
		}
		if !bytes.Equal(key, kv.Key) || id != kv.Lease {
			t.Fatalf("got %x and %d, want %x and %d", key, id, kv.Key, kv.Lease)
		}
	})
}
