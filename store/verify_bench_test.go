package store_test

import (
	"fmt"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph/store"
)

// BenchmarkVerify is what a verification costs a node, beside what the same hash
// costs etcd: its own HashKV, on its own file with the same contents. The third
// keeps more history than etcd does.
//
//	go test ./store -run '^$' -bench Verify -benchtime 5x
func BenchmarkVerify(b *testing.B) {
	const keys = 1_000_000
	src := openSource(b, b.TempDir())
	b.Cleanup(src.close)
	value := make([]byte, 256)
	for i := range keys / 1000 {
		src.do(func(tx mvcc.TxnWrite) {
			for k := range 1000 {
				tx.Put(fmt.Appendf(nil, "key/%08d", 1000*i+k), value, 0)
			}
		})
	}
	half := src.kv.Rev() / 2
	src.compact(half)
	rev := src.put("last", "one")
	st := openStore(b, store.Config{Dir: b.TempDir()})
	b.Cleanup(func() { closeStore(b, st) })
	mustReceive(b, st, src.snapshot())
	want := src.hash(rev)
	run := func(name string, hash func() (uint32, error)) {
		b.Run(fmt.Sprintf("keys=%d/%s", keys, name), func(b *testing.B) {
			for b.Loop() {
				if got, err := hash(); err != nil || got != want.Hash {
					b.Fatalf("%08x, %v; want %08x", got, err, want.Hash)
				}
			}
			b.ReportMetric(float64(keys)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
	run("etcd", func() (uint32, error) { return src.hash(rev).Hash, nil })
	run("node", func() (uint32, error) { return st.HashAt(b.Context(), rev, half) })

	// Compacted at a later revision in etcd, and not yet here.
	src.compact(rev - 1)
	want = src.hash(rev)
	run("etcd-compacted", func() (uint32, error) { return src.hash(rev).Hash, nil })
	run("node-with-more-history", func() (uint32, error) { return st.HashAt(b.Context(), rev, rev-1) })
}
