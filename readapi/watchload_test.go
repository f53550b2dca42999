package readapi_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph/readapi"
)

// writer makes revisions of up to 12 changes each and remembers their keys.
type writer struct {
	r    *replica
	rng  *rand.Rand
	size int // of values
	made map[int64][]string
}

func newWriter(tb testing.TB, r *replica, valueBytes int) *writer {
	seed := rand.Uint64()
	tb.Logf("seed %d", seed)
	return &writer{r: r, rng: rand.New(rand.NewPCG(seed, 0)), size: valueBytes, made: make(map[int64][]string)}
}

// write makes one revision and returns it.
func (w *writer) write() int64 {
	n := 1
	if w.rng.IntN(3) == 0 {
		n = 1 + w.rng.IntN(12)
	}
	var keys []string
	rev := w.r.apply(func(tx mvcc.TxnWrite) {
		for _, k := range w.rng.Perm(40)[:n] {
			key := fmt.Sprintf("%c/%02d", 'a'+k%2, k)
			if w.rng.IntN(4) == 0 {
				if n, _ := tx.DeleteRange([]byte(key), nil); n == 0 {
					continue
				}
			} else {
				tx.Put([]byte(key), []byte(strings.Repeat("v", w.size)), 0)
			}
			keys = append(keys, key)
		}
	})
	if len(keys) > 0 {
		w.made[rev] = keys
	}
	return rev
}

// follower checks what one watch is told, while it is told.
type follower struct {
	from, last int64 // revisions
	keys       map[int64][]string
	partial    int64 // the revision of which only fragments have come
	told       int64 // by progress: everything up to here was sent
}

// take notes a response.
func (f *follower) take(r *pb.WatchResponse) error {
	if r.Canceled {
		return fmt.Errorf("cancelled: %v", r)
	}
	for _, ev := range r.Events {
		rev := ev.Kv.ModRevision
		switch {
		case rev < f.from || rev <= f.told || rev < f.last:
			return fmt.Errorf("revision %d after %d, from %d, and progress to %d", rev, f.last, f.from, f.told)
		case rev == f.last && f.partial != rev && len(r.Events) > 0 && r.Events[0] == ev:
			return fmt.Errorf("revision %d in two responses", rev)
		case rev > f.last && f.partial != 0 && f.partial == f.last && r.Events[0] == ev:
			return fmt.Errorf("revision %d ended with a fragment", f.partial)
		}
		f.last = rev
		f.keys[rev] = append(f.keys[rev], string(ev.Kv.Key))
	}
	f.partial = 0
	if r.Fragment {
		f.partial = f.last
	}
	if len(r.Events) == 0 && !r.Created {
		f.told = max(f.told, r.Header.Revision)
	}
	return nil
}

// check compares what came up to rev with what was written.
func (f *follower) check(w *writer, prefix string, rev int64) error {
	for r := f.from; r <= rev; r++ {
		var want []string
		for _, k := range w.made[r] {
			if strings.HasPrefix(k, prefix) {
				want = append(want, k)
			}
		}
		if fmt.Sprint(f.keys[r]) != fmt.Sprint(want) {
			return fmt.Errorf("revision %d: got %v, want %v", r, f.keys[r], want)
		}
	}
	return nil
}

// end is the key whose event ends a follower.
const end = "~end"

// TestFault08And13WatchersSeeWholeRevisionsAndTrueProgress follows a writer at
// full speed with watches of all kinds, on streams that ask for progress.
func TestFault08And13WatchersSeeWholeRevisionsAndTrueProgress(t *testing.T) {
	r := newReplica(t)
	w := newWriter(t, r, 200)
	for range 500 {
		w.write()
	}
	reg := prometheus.NewRegistry()
	srv := serve(t, r, func(c *readapi.Config) {
		c.MaxRequestBytes, c.ProgressInterval, c.Metrics = 2000, 100*time.Millisecond, reg
		c.WatchBufferBytes = 500_000 // so that clients that read are parked at times, too
	})
	var wg sync.WaitGroup
	var checks []func() error
	var mu sync.Mutex
	for i := range 8 {
		stream := watchOn(t, within(t, 4*time.Minute), srv)
		followers := make(map[int64]*follower)
		prefixes := map[int64]string{1: "", 2: "a/", 3: "b/"}
		for id, p := range prefixes {
			req := &pb.WatchCreateRequest{
				WatchId: id, Key: []byte(p), RangeEnd: []byte(p + "\xff"),
				StartRevision: int64(2 + 100*i), Fragment: i%2 == 0, PrevKv: i%3 == 0, ProgressNotify: i%4 == 0,
			}
			if p == "" {
				req.Key, req.RangeEnd = []byte{0}, []byte{0}
			}
			send(t, stream, req)
			followers[id] = &follower{from: req.StartRevision, keys: make(map[int64][]string)}
		}
		wg.Go(func() {
			progress := 0
			for {
				resp, err := stream.Recv()
				if err != nil {
					t.Error(err)
					return
				}
				for id, f := range followers {
					if resp.WatchId != id && resp.WatchId != -1 {
						continue
					}
					if err := f.take(resp); err != nil {
						t.Errorf("stream %d, watch %d: %v", i, id, err)
						return
					}
				}
				if resp.WatchId == -1 {
					progress++
				}
				if n := len(resp.Events); n > 0 && string(resp.Events[n-1].Kv.Key) == end {
					break
				}
				if rand.IntN(20) == 0 {
					sendProgress(t, stream)
				}
			}
			last := followers[1].last
			mu.Lock()
			defer mu.Unlock()
			checks = append(checks, func() error {
				if err := followers[1].check(w, "", last-1); err != nil {
					return fmt.Errorf("stream %d: %w", i, err)
				}
				// The others may have been parked when the first came to its end.
				for _, id := range []int64{2, 3} {
					if err := followers[id].check(w, prefixes[id], followers[id].last); err != nil {
						return fmt.Errorf("stream %d, watch %d: %w", i, id, err)
					}
					if err := followers[id].check(w, prefixes[id], min(followers[id].told, last-1)); err != nil {
						return fmt.Errorf("stream %d, watch %d, told %d: %w", i, id, followers[id].told, err)
					}
				}
				t.Logf("stream %d: progress for all %d times", i, progress)
				return nil
			})
		})
	}
	for range 2000 {
		w.write()
	}
	r.put(end, "")
	wg.Wait()
	if len(w.made) < 1500 {
		t.Fatalf("only %d revisions written", len(w.made))
	}
	for _, check := range checks {
		if err := check(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("parked %v times", metric(t, reg, "watch_parked_total"))
}

// TestFault14SlowWatcherCostsItsBudget lets a client read nothing while far
// more is written than it may cost, and then everything.
func TestFault14SlowWatcherCostsItsBudget(t *testing.T) {
	r := newReplica(t)
	w := newWriter(t, r, 4<<10)
	reg := prometheus.NewRegistry()
	const budget = 1 << 20
	srv := serve(t, r, func(c *readapi.Config) { c.WatchBufferBytes, c.Metrics = budget, reg })
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	stream := watchOn(t, ctx, srv)
	open(t, stream, &pb.WatchCreateRequest{WatchId: 1, Key: []byte{0}, RangeEnd: []byte{0}})
	open(t, stream, &pb.WatchCreateRequest{WatchId: 2, Key: []byte("a/"), RangeEnd: []byte("a0"), PrevKv: true})
	from := r.Applied() + 1
	most := 0.0
	for range 1500 {
		w.write()
		most = max(most, metric(t, reg, "watch_buffered_bytes"))
	}
	if parked := metric(t, reg, "watch_parked_total"); parked == 0 {
		t.Fatal("no watch was parked: the test shows nothing")
	}
	if limit := float64(budget + 12*(5<<10)); most > limit { // and one revision
		t.Errorf("%v bytes were held, want at most %v", most, limit)
	}
	sendProgress(t, stream) // not answered: it could not be true
	last := r.put("a/~", "", end, "")
	all := &follower{from: from, keys: make(map[int64][]string)}
	some := &follower{from: from, keys: make(map[int64][]string)}
	for all.last < last || some.last < last {
		resp := recv(t, stream)
		for _, f := range []*follower{all, some} {
			if resp.WatchId == -1 || (f == all) == (resp.WatchId == 1) {
				if err := f.take(resp); err != nil {
					t.Fatalf("watch %d: %v", resp.WatchId, err)
				}
			}
		}
	}
	if err := all.check(w, "", last-1); err != nil {
		t.Error(err)
	}
	if err := some.check(w, "a/", last-1); err != nil {
		t.Error(err)
	}
	t.Logf("parked %v times, at most %v bytes held", metric(t, reg, "watch_parked_total"), most)
	// Drained, it is a watch like any other.
	rev := r.put("a/x", "")
	for range 2 {
		if got := recv(t, stream); got.Events[0].Kv.ModRevision != rev {
			t.Errorf("got %v, want revision %d", got, rev)
		}
	}
}

// TestWatchBudgetOfTheNode bounds what many clients cost together.
func TestWatchBudgetOfTheNode(t *testing.T) {
	r := newReplica(t)
	reg := prometheus.NewRegistry()
	const total = 1 << 20
	srv := serve(t, r, func(c *readapi.Config) { c.WatchBuffersBytes, c.Metrics = total, reg })
	var streams []pb.Watch_WatchClient
	for range 20 {
		s := watchOn(t, within(t, 4*time.Minute), srv)
		open(t, s, everything)
		streams = append(streams, s)
	}
	value := strings.Repeat("v", 8<<10)
	for range 200 { // 1.6 MiB for each of 20 streams
		r.put("k", value)
	}
	if parked := metric(t, reg, "watch_parked_total"); parked == 0 {
		t.Fatal("no watch was parked: the test shows nothing")
	}
	if got := metric(t, reg, "watch_buffered_bytes"); got > total+20*((64+9)<<10) {
		t.Errorf("%v bytes are held, want about %d", got, total)
	}
	// One that reads gets its events, though the others hold all there is.
	for i, ev := range events(t, streams[0], 200) {
		if ev.Kv.Version != int64(i+1) {
			t.Fatalf("event %d is version %d", i, ev.Kv.Version)
		}
	}
}
