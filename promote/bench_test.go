package promote_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heliograph/heliograph/promote"
)

// From Promote to the first accepted write, beside what etcd takes from its start
// on the same data directory to a write:
//
//	go test ./promote -run '^$' -bench Promote -benchtime 3x -timeout 20m
func BenchmarkPromote(b *testing.B) {
	for _, keys := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d/value=256B", keys), func(b *testing.B) {
			replica := b.TempDir()
			rev := fillReplica(b, replica, keys, 256, false)
			var promoting, first, etcd time.Duration
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				dir := filepath.Join(b.TempDir(), "data")
				copyTree(b, replica, dir)
				syncFile(b, filepath.Join(dir, "default.db")) // a store that was closed is durable
				cfg := config(dir)
				cfg.PeerURLs = localURLs(b, 1)
				b.StartTimer()

				start := time.Now()
				rec := mustPromote(b, cfg)
				promoting += time.Since(start)
				s := serve(b, dir, rec)
				if got := put(b, s.client, "new", "1"); got != rev+1 {
					b.Fatalf("first write has revision %d, want %d", got, rev+1)
				}
				first += time.Since(start)

				b.StopTimer()
				s.stop()
				start = time.Now()
				s = serve(b, dir, rec)
				put(b, s.client, "new", "2")
				etcd += time.Since(start)
				s.stop()
				if err := os.RemoveAll(promote.EtcdDir(dir, database)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			n := float64(b.N)
			b.ReportMetric(promoting.Seconds()/n, "s-promoting")
			b.ReportMetric(first.Seconds()/n, "s-to-write")
			b.ReportMetric(etcd.Seconds()/n, "s-etcd-alone")
			b.ReportMetric(first.Seconds()/etcd.Seconds(), "times-etcd")
		})
	}
}

func syncFile(b *testing.B, path string) {
	b.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		b.Fatal(err)
	}
}
