package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// BenchmarkApply compares applying one put per revision, over 100,000 random
// keys, with the same puts into etcd's bare MVCC, which checks nothing. Both make
// the same records and copies.
//
//	go test -bench Apply -benchtime 300000x ./store
func BenchmarkApply(b *testing.B) {
	for _, size := range []int{256, 4096} {
		b.Run(fmt.Sprintf("value=%d/store", size), func(b *testing.B) {
			st := openStore(b, store.Config{Dir: b.TempDir()})
			defer closeStore(b, st)
			src := openSource(b, b.TempDir())
			mustReceive(b, st, src.snapshot())
			src.close()
			w := newWorkload(size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := st.Apply(w.next(b)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "revisions/s")
		})
		b.Run(fmt.Sprintf("value=%d/mvcc", size), func(b *testing.B) {
			cfg := backend.DefaultBackendConfig(zap.NewNop())
			cfg.Path = b.TempDir() + "/db"
			be := backend.New(cfg)
			kv := mvcc.New(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
			defer func() {
				_ = kv.Close()
				_ = be.Close()
			}()
			w := newWorkload(size)
			b.SetBytes(int64(size))
			for b.Loop() {
				w.next(b)
				tx := kv.Write(traceutil.TODO())
				tx.Put(bytes.Clone(w.kv.Key), bytes.Clone(w.kv.Value), 0)
				tx.End()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "revisions/s")
		})
	}
}

// workload makes one batch after the other: puts of random keys, in the same
// memory each time.
type workload struct {
	rnd      *rand.Rand
	kv       mvccpb.KeyValue
	creates  [100_000]int64
	versions [100_000]int64
	rev      int64
	rec      [1]heliograph.Record
}

func newWorkload(size int) *workload {
	w := &workload{rnd: rand.New(rand.NewPCG(1, 1)), rev: 1}
	w.kv.Value = make([]byte, size)
	return w
}

func (w *workload) next(b *testing.B) heliograph.Batch {
	w.rev++
	k := w.rnd.IntN(len(w.creates))
	if w.versions[k]++; w.versions[k] == 1 {
		w.creates[k] = w.rev
	}
	w.kv.Key = fmt.Appendf(w.kv.Key[:0], "/registry/pods/default/%08d", k)
	w.kv.CreateRevision, w.kv.ModRevision, w.kv.Version = w.creates[k], w.rev, w.versions[k]
	r := &w.rec[0]
	r.Key = heliograph.RevisionKey{Main: w.rev}.Append(r.Key[:0])
	var err error
	if r.Value, err = (proto.MarshalOptions{}).MarshalAppend(r.Value[:0], &w.kv); err != nil {
		b.Fatal(err)
	}
	return heliograph.Batch{Rev: w.rev, Records: w.rec[:]}
}

// BenchmarkHistory reads single-put revisions back, 1 MiB at a time.
func BenchmarkHistory(b *testing.B) {
	st := openStore(b, store.Config{Dir: b.TempDir()})
	defer closeStore(b, st)
	src := openSource(b, b.TempDir())
	mustReceive(b, st, src.snapshot())
	src.close()
	w := newWorkload(256)
	for range b.N {
		if err := st.Apply(w.next(b)); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for from := int64(2); from <= st.Applied(); {
		last, err := st.History(from, 1<<20, func(k, v []byte) error {
			b.SetBytes(int64(len(k) + len(v)))
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		from = last + 1
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "revisions/s")
}
