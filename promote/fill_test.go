package promote_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

var fillOrigin = heliograph.Origin{Cluster: "prod-us", Database: database, EtcdID: 0xabcdef}

// fillReplica makes a replica of n keys of size bytes, one per revision, each with
// a lease of its own if leases is set, and returns its revision. No etcd is asked:
// this is for numbers that would take one too long.
func fillReplica(tb testing.TB, dir string, n, size int, leases bool) int64 {
	tb.Helper()
	st := openStore(tb, dir)
	defer closeStore(tb, st)
	receive(tb, st, emptyDatabase(tb))
	value := bytes.Repeat([]byte{'v'}, size)
	for st.Applied() < int64(n)+1 {
		rev := st.Applied() + 1
		kv := &mvccpb.KeyValue{
			Key: fmt.Appendf(nil, "/registry/things/%09d", rev), Value: value,
			CreateRevision: rev, ModRevision: rev, Version: 1,
		}
		if leases {
			kv.Lease = rev
		}
		v, err := proto.Marshal(kv)
		if err != nil {
			tb.Fatal(err)
		}
		if err := st.Apply(heliograph.Batch{Rev: rev, Records: []heliograph.Record{
			{Key: heliograph.RevisionKey{Main: rev}.Append(nil), Value: v},
		}}); err != nil {
			tb.Fatal(err)
		}
	}
	return st.Applied()
}

// emptyDatabase returns the file of an etcd that was never written to.
func emptyDatabase(tb testing.TB) []byte {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "empty.db")
	be := backend.NewDefaultBackend(zap.NewNop(), path)
	tx := be.BatchTx()
	tx.LockOutsideApply()
	for _, b := range schema.AllBuckets {
		tx.UnsafeCreateBucket(b)
	}
	schema.UnsafeUpdateConsistentIndexForce(tx, 1, 1)
	tx.Unlock()
	be.ForceCommit()
	if err := be.Close(); err != nil {
		tb.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func receive(tb testing.TB, st *store.Store, data []byte) {
	tb.Helper()
	r, err := st.ReceiveSnapshot(int64(len(data)))
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.WriteChunk(0, data); err != nil {
		tb.Fatal(err)
	}
	if _, err := r.Commit(int64(len(data)), sha256.Sum256(data), fillOrigin); err != nil {
		tb.Fatal(err)
	}
}
