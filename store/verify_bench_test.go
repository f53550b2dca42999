package store_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph/store"
)

// BenchmarkVerify is what a verification costs a node, beside what the same hash
// costs etcd: its own HashKV, on its own file, in turn. The node has etcd's history,
// or all of it while etcd is compacted near its head.
//
//	go test ./store -run '^$' -bench Verify -benchtime 1x -timeout 30m
//
// BENCH_KEYS (1,000,000) and BENCH_ROUNDS (7) scale it. Figures are medians;
// times-etcd is that of the ratios within each round, with the least and the most.
// The stalls are the longest that a write took during one more hash.
func BenchmarkVerify(b *testing.B) {
	keys, rounds := benchEnv(b, "BENCH_KEYS", 1_000_000), benchEnv(b, "BENCH_ROUNDS", 7)
	src := openSource(b, b.TempDir())
	b.Cleanup(src.close)
	fillForVerify(src, keys)
	rev := src.kv.Rev()

	for _, history := range []string{"more", "equal"} { // in this order: compaction is for ever
		var snapshot []byte
		if history == "more" {
			snapshot = src.snapshot()
			src.compact(rev - rev/10)
		} else {
			rev = src.kv.Rev()
			snapshot = src.snapshot()
		}
		b.Run(fmt.Sprintf("keys=%d/history=%s", keys, history), func(b *testing.B) {
			st := openStore(b, store.Config{Dir: b.TempDir()})
			defer closeStore(b, st)
			mustReceive(b, st, snapshot)
			want := src.hash(rev)
			check := func(got uint32, err error) {
				b.Helper()
				if err != nil || got != want.Hash {
					b.Fatalf("%08x, %v; want %08x", got, err, want.Hash)
				}
			}
			etcd := side{
				write: func() { src.put("written meanwhile", "1") },
				hash:  func() { check(src.hash(rev).Hash, nil) },
			}
			node := side{
				write: func() {
					if st.Applied() == src.kv.Rev() {
						src.put("written meanwhile", "1")
					}
					if err := st.Apply(src.batch(st.Applied() + 1)); err != nil {
						b.Error(err)
					}
				},
				hash: func() { check(st.HashAt(b.Context(), rev, want.CompactRevision)) },
			}
			sides := []*side{&etcd, &node}
			for round := range rounds {
				sides[round%2].measure()
				sides[1-round%2].measure()
			}
			var times []float64
			for i := range etcd.took {
				times = append(times, node.took[i]/etcd.took[i])
			}
			b.ReportMetric(0, "ns/op") // the time of all rounds together says nothing
			b.ReportMetric(median(etcd.took), "etcd-ms")
			b.ReportMetric(median(node.took), "node-ms")
			b.ReportMetric(median(etcd.cpu), "etcd-cpu-ms")
			b.ReportMetric(median(node.cpu), "node-cpu-ms")
			b.ReportMetric(median(times), "times-etcd")
			b.ReportMetric(slices.Min(times), "times-etcd-least")
			b.ReportMetric(slices.Max(times), "times-etcd-most")
			b.ReportMetric(median(etcd.stalls), "etcd-stall-ms")
			b.ReportMetric(median(node.stalls), "node-stall-ms")
		})
	}
}

// fillForVerify writes the keys with values of 256 bytes, ten in a revision and not
// in their order, and then a third of them once more: most revisions are current in
// part.
func fillForVerify(src *source, keys int) {
	const inOne, step = 10, 7_368_787 // a prime
	value := make([]byte, 256)
	for i := 0; i < keys+keys/3; i += inOne {
		src.do(func(tx mvcc.TxnWrite) {
			for k := i; k < min(i+inOne, keys+keys/3); k++ {
				tx.Put(fmt.Appendf(nil, "key/%08d", k*step%keys), value, 0)
			}
		})
	}
}

// side is one of two whose hashes are timed, in milliseconds.
type side struct {
	write, hash       func()
	took, cpu, stalls []float64
}

// measure makes one hash, and then another while a writer writes every few
// milliseconds, whose longest write counts.
func (s *side) measure() {
	cpu, start := cpuTime(), time.Now()
	s.hash()
	s.took, s.cpu = append(s.took, millis(time.Since(start))), append(s.cpu, millis(cpuTime()-cpu))

	stop, longest := make(chan struct{}), make(chan time.Duration)
	go func() {
		most := time.Duration(0)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				longest <- most
				return
			case <-tick.C:
				start := time.Now()
				s.write()
				most = max(most, time.Since(start))
			}
		}
	}()
	s.hash()
	close(stop)
	s.stalls = append(s.stalls, millis(<-longest))
}

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(v []float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// benchEnv is a size that the environment may set.
func benchEnv(b *testing.B, name string, value int) int {
	b.Helper()
	s := os.Getenv(name)
	if s == "" {
		return value
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		b.Fatalf("%s=%q: want a number of at least 1", name, s)
	}
	return n
}
