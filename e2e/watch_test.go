package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// watchWait is how long a watch may take to show what was written, faults
// included.
const watchWait = time.Minute

const counterKey = "counter"

// counter is a key that is put with 1, 2, 3 … and a watch that must show exactly
// that.
type counter struct {
	tb testing.TB

	mu   sync.Mutex
	made int   // puts that etcd has answered
	seen int   // the last number that the watch has shown
	err  error // the first thing that went wrong
}

// startCounter counts at etcd and watches at a mirror until the test ends.
func startCounter(t *testing.T, etcd, mirror *clientv3.Client) *counter {
	t.Helper()
	c := &counter{tb: t}
	ctx, cancel := context.WithCancel(t.Context())
	rev, err := etcdtest.Revision(ctx, etcd)
	if err != nil {
		t.Fatal(err)
	}
	events := mirror.Watch(ctx, counterKey, clientv3.WithRev(rev+1))
	var g sync.WaitGroup
	g.Go(func() { c.fail(ctx, c.count(ctx, etcd)) })
	g.Go(func() { c.fail(ctx, c.follow(events)) })
	t.Cleanup(func() { cancel(); g.Wait() })
	return c
}

func (c *counter) fail(ctx context.Context, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil && c.err == nil {
		c.err = err
	}
}

func (c *counter) count(ctx context.Context, etcd *clientv3.Client) error {
	for n := 1; ; n++ {
		if _, err := etcd.Put(ctx, counterKey, strconv.Itoa(n)); err != nil {
			return fmt.Errorf("put %d: %w", n, err)
		}
		c.mu.Lock()
		c.made = n
		c.mu.Unlock()
	}
}

func (c *counter) follow(events clientv3.WatchChan) error {
	want := 1
	for resp := range events {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("the watch after %d: %w", want-1, err)
		}
		for _, ev := range resp.Events {
			if got := string(ev.Kv.Value); got != strconv.Itoa(want) || ev.Kv.Version != int64(want) {
				return fmt.Errorf("the watch shows %s, version %d; want %d", got, ev.Kv.Version, want)
			}
			want++
		}
		c.mu.Lock()
		c.seen = want - 1
		c.mu.Unlock()
	}
	return errors.New("the watch was closed")
}

// await returns when ok accepts the counter, and fails the test if something
// went wrong before.
func (c *counter) await(what string, ok func(made, seen int) bool) {
	c.tb.Helper()
	for deadline := time.Now().Add(watchWait); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		made, seen, err := c.made, c.seen, c.err
		c.mu.Unlock()
		switch {
		case err != nil:
			c.tb.Fatal(err)
		case ok(made, seen):
			return
		case time.Now().After(deadline):
			c.tb.Fatalf("not %s within %s: counted to %d, watched %d", what, watchWait, made, seen)
		}
	}
}

// more waits until etcd has counted n more.
func (c *counter) more(n int) {
	c.tb.Helper()
	target := 0
	c.await("counted on", func(made, _ int) bool {
		if target == 0 {
			target = made + n
		}
		return made >= target
	})
}

// shown waits until the watch has shown all that is counted now.
func (c *counter) shown() {
	c.tb.Helper()
	target := 0
	c.await("shown", func(made, seen int) bool {
		if target == 0 {
			target = made
		}
		return seen >= target
	})
}

// What a client library's watch on a mirror shows, while everything behind it
// dies and comes back, is every put once and in order.
func TestWatchGoesOnThroughFaults(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	c := startCounter(t, etcd.Client(t), mirror.Client())
	c.more(50)
	c.shown()
	for _, fault := range []struct {
		name   string
		inject func()
	}{
		{"mirror killed", func() {
			mirror.Kill()
			c.more(50)
			mirror.Start()
		}},
		{"mirror killed and back at once", mirror.Restart},
		{"mirror stopped as it should be", func() {
			if code, took := mirror.Stop(5 * time.Second); code != 0 {
				t.Errorf("the mirror exited with %d after %s", code, took)
			}
			mirror.Start()
		}},
		{"source node killed and back at once", source.Restart},
		{"etcd silent", func() {
			etcd.Member(0).Pause()
			mirror.WaitStatus("stale", watchWait, func(s heliograph.Status) bool { return s.StalenessMS > 1000 })
			etcd.Member(0).Resume()
		}},
		{"source node lost", func() {
			alert := watchThatNeedsTheSource(t, mirror.Client())
			source.Kill()
			alert()
			c.more(50)
			source.Start()
		}},
	} {
		t.Log(fault.name)
		c.shown()
		fault.inject()
		c.more(50)
		c.shown()
	}
}

// watchThatNeedsTheSource opens a watch of a client that wants to know when it is
// cut off; the function that it returns waits for it to be told.
func watchThatNeedsTheSource(t *testing.T, mirror *clientv3.Client) func() {
	t.Helper()
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(t.Context()), watchWait)
	t.Cleanup(cancel)
	events := mirror.Watch(ctx, "anything", clientv3.WithCreatedNotify())
	if resp := <-events; resp.Err() != nil || !resp.Created {
		t.Fatalf("watch that needs the source: %+v", resp)
	}
	return func() {
		t.Helper()
		defer cancel()
		if resp := <-events; !errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
			t.Errorf("a watch that needs the source got %+v, %v; want %v", resp, resp.Err(), rpctypes.ErrNoLeader)
		}
	}
}
