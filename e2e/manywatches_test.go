package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// 10,000 watches of 20 clients on one mirror: each gets the event of its own key
// and no other, and they cost a bounded amount of memory.
func TestTenThousandWatches(t *testing.T) {
	const (
		clients, each = 20, 500
		perTxn        = 100
		perWatchBytes = 16 << 10 // far above what one needs, far below a stream of its own with buffers
	)
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	before := residentBytes(t, mirror.PID())

	ctx, cancel := context.WithTimeout(t.Context(), watchWait)
	defer cancel()
	key := func(i int) string { return fmt.Sprintf("watched/%05d", i) }
	watches := make([]clientv3.WatchChan, clients*each)
	var opening errgroup.Group
	for n := range clients {
		client := mirror.Client()
		opening.Go(func() error {
			for i := n * each; i < (n+1)*each; i++ {
				watches[i] = client.Watch(ctx, key(i), clientv3.WithCreatedNotify())
			}
			for i := n * each; i < (n+1)*each; i++ {
				if resp := <-watches[i]; resp.Err() != nil || !resp.Created {
					return fmt.Errorf("watch %d: %+v, %w", i, resp.Header, resp.Err())
				}
			}
			return nil
		})
	}
	if err := opening.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := mirror.Metric("heliograph_readapi_watches"); got != clients*each {
		t.Errorf("the mirror has %v watches, want %d", got, clients*each)
	}

	client := etcd.Client(t)
	start := time.Now()
	for i := 0; i < len(watches); i += perTxn {
		var ops []clientv3.Op
		for j := i; j < i+perTxn; j++ {
			ops = append(ops, clientv3.OpPut(key(j), key(j)))
		}
		if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range watches {
		resp := <-w
		if resp.Err() != nil || len(resp.Events) != 1 || string(resp.Events[0].Kv.Key) != key(i) {
			t.Fatalf("watch %d got %v, %v", i, resp.Events, resp.Err())
		}
	}
	took := time.Since(start)
	cost := residentBytes(t, mirror.PID()) - before
	t.Logf("%d watches cost the mirror %.1f MiB (%.1f KiB each); %d events written and shown in %s",
		len(watches), float64(cost)/(1<<20), float64(cost)/float64(len(watches))/(1<<10), len(watches), took.Round(time.Millisecond))
	if cost > int64(len(watches))*perWatchBytes {
		t.Errorf("%d bytes for %d watches, want at most %d each", cost, len(watches), perWatchBytes)
	}
	// Nothing came twice: what is written now is the next event of each.
	if _, err := client.Put(ctx, key(0), "again"); err != nil {
		t.Fatal(err)
	}
	if resp := <-watches[0]; len(resp.Events) != 1 || string(resp.Events[0].Kv.Value) != "again" {
		t.Errorf("watch 0 got %v, %v", resp.Events, resp.Err())
	}
	cancel()
	for deadline := time.Now().Add(watchWait); mirror.Metric("heliograph_readapi_watches") != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the mirror keeps watches whose clients have cancelled them")
		}
	}
}

// residentBytes returns the memory that a process holds now.
func residentBytes(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		var kib int64
		if n, _ := fmt.Sscanf(string(line), "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}
