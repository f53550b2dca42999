package readapi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/heliograph/heliograph/readapi"
)

var everything = &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}}

func TestWatchIDs(t *testing.T) {
	srv := serve(t, newReplica(t))
	w := watchOn(t, call(t), srv)
	for _, step := range []struct {
		ask, want int64
		refused   string
	}{
		{0, 0, ""}, {0, 1, ""}, {2, 2, ""}, {0, 3, ""}, {7, 7, ""},
		{7, -1, "duplicate watch ID"}, {-5, -5, ""}, {1, -1, "duplicate watch ID"},
	} {
		got := open(t, w, &pb.WatchCreateRequest{Key: []byte("a"), WatchId: step.ask})
		if got.WatchId != step.want || got.Canceled != (step.refused != "") || !strings.Contains(got.CancelReason, step.refused) {
			t.Errorf("asked for %d, got %v", step.ask, got)
		}
		if got.Header.Revision != 1 || got.Header.ClusterId != origin.EtcdID {
			t.Errorf("header %v", got.Header)
		}
	}
	sendCancel(t, w, 99) // unknown: no answer
	sendCancel(t, w, 7)
	if got := recv(t, w); !got.Canceled || got.WatchId != 7 || got.Created {
		t.Errorf("got %v", got)
	}
	if got := open(t, w, &pb.WatchCreateRequest{Key: []byte("a"), WatchId: 7}); got.WatchId != 7 {
		t.Errorf("a cancelled id is not free: %v", got)
	}
}

func TestWatchRequestsThatAreRefused(t *testing.T) {
	srv := serve(t, newReplica(t), func(c *readapi.Config) { c.MaxWatches = 2 })
	w := watchOn(t, call(t), srv)
	for _, test := range []struct {
		r    *pb.WatchCreateRequest
		want string
	}{
		{&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}, "watcher range is empty"},
		{&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("b")}, "watcher range is empty"},
		{&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: -1}, rpctypes.ErrCompacted.Error()},
		{&pb.WatchCreateRequest{Key: make([]byte, 100<<10)}, rpctypes.ErrTooManyRequests.Error()},
		{&pb.WatchCreateRequest{}, ""},
		{&pb.WatchCreateRequest{}, ""},
		{&pb.WatchCreateRequest{}, rpctypes.ErrTooManyRequests.Error()},
	} {
		got := open(t, w, test.r)
		if !strings.Contains(got.CancelReason, test.want) || got.Canceled != (test.want != "") || (got.WatchId == -1) != got.Canceled {
			t.Errorf("got %v, want %q", got, test.want)
		}
	}
	sendCancel(t, w, 0)
	recv(t, w)
	if got := open(t, w, &pb.WatchCreateRequest{}); got.Canceled {
		t.Errorf("a cancelled watch gave its place not back: %v", got)
	}
}

func TestWatchPastPresentAndFuture(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1")
	r.put("a", "2", "b", "2")
	r.delete("a")
	srv := serve(t, r)
	w := watchOn(t, call(t), srv)
	open(t, w, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3, PrevKv: true})
	got := events(t, w, 2)
	if string(got[0].Kv.Value) != "2" || string(got[0].PrevKv.Value) != "1" || got[1].Type != mvccpb.Event_DELETE || string(got[1].PrevKv.Value) != "2" {
		t.Errorf("got %v", got)
	}
	filtered := watchOn(t, call(t), srv)
	open(t, filtered, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	if got := events(t, filtered, 1); len(got) != 1 || got[0].Type != mvccpb.Event_DELETE {
		t.Errorf("got %v", got)
	}
	future := watchOn(t, call(t), srv)
	open(t, future, &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), StartRevision: r.Applied() + 2})
	r.put("a", "now")
	rev := r.put("b", "then")
	if got := events(t, future, 1); got[0].Kv.ModRevision != rev {
		t.Errorf("got %v, want revision %d", got, rev)
	}
}

func TestCompactedWatchIsCancelledWithTheRevision(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1")
	rev := r.put("a", "2")
	r.put("a", "3")
	r.compact(rev)
	srv := serve(t, r)
	w := watchOn(t, call(t), srv)
	open(t, w, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1, WatchId: 5})
	if got := recv(t, w); !got.Canceled || got.CompactRevision != rev || got.WatchId != 5 {
		t.Errorf("got %v", got)
	}
	sendCancel(t, w, 5) // only this frees the id
	if got := recv(t, w); !got.Canceled || got.WatchId != 5 {
		t.Errorf("got %v", got)
	}
	if got := open(t, w, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: rev, WatchId: 5}); got.Canceled {
		t.Errorf("got %v", got)
	}
	if got := events(t, w, 2); got[0].Kv.ModRevision != rev {
		t.Errorf("got %v", got)
	}
	wr := <-srv.client(t).Watch(call(t), "a", clientv3.WithRev(1))
	if !errors.Is(wr.Err(), rpctypes.ErrCompacted) || wr.CompactRevision != rev {
		t.Errorf("through etcd's client: %v", wr.Err())
	}
}

func TestProgress(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1")
	srv := serve(t, r, func(c *readapi.Config) { c.ProgressInterval = 100 * time.Millisecond })
	w := watchOn(t, call(t), srv)
	open(t, w, &pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true, WatchId: 4})
	open(t, w, &pb.WatchCreateRequest{Key: []byte("b"), WatchId: 6})
	if got := recv(t, w); got.WatchId != 4 || len(got.Events) != 0 || got.Header.Revision != r.Applied() {
		t.Errorf("notification %v", got)
	}
	silent := watchOn(t, call(t), srv)
	open(t, silent, &pb.WatchCreateRequest{Key: []byte("a")})
	sendProgress(t, silent)
	if got := recv(t, silent); got.WatchId != clientv3.InvalidWatchID || len(got.Events) != 0 || got.Header.Revision != r.Applied() {
		t.Errorf("answer %v", got)
	}
}

func TestFragmentsMakeUpARevision(t *testing.T) {
	r := newReplica(t)
	const keys = 100
	var pairs []string
	for i := range keys {
		pairs = append(pairs, fmt.Sprintf("k%03d", i), strings.Repeat("x", 1000))
	}
	rev := r.put(pairs...)
	r.put("k000", "after")
	srv := serve(t, r, func(c *readapi.Config) { c.MaxRequestBytes = 10_000 })
	w := watchOn(t, call(t), srv)
	open(t, w, &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: rev, Fragment: true})
	fragments, got := 0, 0
	for {
		resp := recv(t, w)
		got += len(resp.Events)
		if !resp.Fragment {
			break
		}
		fragments++
	}
	if fragments < 10 || got < keys {
		t.Errorf("%d events in %d fragments", got, fragments)
	}
	whole := watchOn(t, call(t), srv)
	open(t, whole, &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: rev})
	if resp := recv(t, whole); len(resp.Events) != keys || resp.Fragment {
		t.Errorf("%d events in one response, want %d", len(resp.Events), keys)
	}
}

func TestWatchThatNeedsTheSource(t *testing.T) {
	r := newReplica(t)
	var down atomic.Bool
	srv := serve(t, r, func(c *readapi.Config) {
		c.LeaderInterval = 10 * time.Millisecond
		c.UpstreamAlive = func() error {
			if down.Load() {
				return errors.New("nothing heard")
			}
			return nil
		}
	})
	needs := metadata.AppendToOutgoingContext(call(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	demanding, relaxed := watchOn(t, needs, srv), watchOn(t, call(t), srv)
	open(t, demanding, everything)
	open(t, relaxed, everything)
	down.Store(true)
	_, err := demanding.Recv()
	wantStatus(t, err, codes.Unavailable, "etcdserver: no leader")
	_, err = watchOn(t, needs, srv).Recv()
	wantStatus(t, err, codes.Unavailable, "etcdserver: no leader")
	r.put("a", "1")
	events(t, relaxed, 1)
	wr := <-srv.client(t).Watch(clientv3.WithRequireLeader(call(t)), "a")
	if !errors.Is(wr.Err(), rpctypes.ErrNoLeader) {
		t.Errorf("through etcd's client: %v", wr.Err())
	}
	down.Store(false)
	open(t, watchOn(t, needs, srv), everything)
}

// The new contents may be another history, so a client must not resume by itself:
// it gets the error after which it reads anew.
func TestWatchOfAReplacedStoreEnds(t *testing.T) {
	r := newReplica(t)
	srv := serve(t, r, func(c *readapi.Config) { c.LeaderInterval = 10 * time.Millisecond })
	w := watchOn(t, call(t), srv)
	open(t, w, everything)
	r.open(t.TempDir() + "/db")
	_, err := w.Recv()
	wantStatus(t, err, codes.OutOfRange, "compacted")
}

// With the contents goes what was known of the source's access control, so that callers
// are turned away at the same moment. The watch is told of the contents first: a client
// that was turned away would resume by itself, in another history.
func TestWatchOfAReplacedStoreIsToldOfThatFirst(t *testing.T) {
	r := newReplica(t)
	before, err := r.KV()
	if err != nil {
		t.Fatal(err)
	}
	srv := serve(t, r, func(c *readapi.Config) {
		c.LeaderInterval = 10 * time.Millisecond
		c.Admit = func(context.Context) error {
			if now, err := r.KV(); err != nil || now != before {
				return fmt.Errorf("whether the source has access control on is %w", readapi.ErrUndecided)
			}
			return nil
		}
	})
	w := watchOn(t, call(t), srv)
	open(t, w, everything)
	r.open(t.TempDir() + "/db")
	_, err = w.Recv()
	wantStatus(t, err, codes.OutOfRange, "compacted")
}

func TestWatchGoesOnWhenTheClientHasSaidAll(t *testing.T) {
	r := newReplica(t)
	w := watchOn(t, call(t), serve(t, r))
	open(t, w, everything)
	if err := w.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.put("a", "1")
	events(t, w, 1)
}

func TestTenThousandWatches(t *testing.T) {
	r := newReplica(t)
	reg := prometheus.NewRegistry()
	srv := serve(t, r, func(c *readapi.Config) { c.Metrics = reg; c.ProgressInterval = 4 * time.Second })
	const streams, each = 10, 1000
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var all []pb.Watch_WatchClient
	for range streams {
		w := watchOn(t, ctx, srv)
		all = append(all, w)
		go func() {
			for i := range int64(each) {
				r := &pb.WatchCreateRequest{Key: []byte("shared"), WatchId: i + 1, ProgressNotify: true}
				if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
					t.Error(err)
				}
			}
		}()
		for created := 0; created < each; {
			if recv(t, w).Created {
				created++
			}
		}
	}
	if got := metric(t, reg, "watches"); got != streams*each {
		t.Errorf("%v watches counted", got)
	}
	rev := r.put("shared", "1")
	var wg sync.WaitGroup
	for _, w := range all {
		wg.Go(func() {
			seen, progressed := make(map[int64]bool), make(map[int64]bool)
			for len(seen) < each || len(progressed) < each {
				resp, err := w.Recv()
				if err != nil {
					t.Errorf("%v after %d events and %d notifications", err, len(seen), len(progressed))
					return
				}
				for _, ev := range resp.Events {
					if ev.Kv.ModRevision != rev || seen[resp.WatchId] {
						t.Errorf("watch %d got %v again", resp.WatchId, ev)
					}
					seen[resp.WatchId] = true
				}
				if len(resp.Events) == 0 && resp.Header.Revision >= rev {
					if !seen[resp.WatchId] {
						t.Errorf("watch %d was told of progress to %d before its event", resp.WatchId, rev)
					}
					progressed[resp.WatchId] = true
				}
			}
		})
	}
	wg.Wait()
	cancel()
	until(t, "all places given back", func() bool { return metric(t, reg, "watches") == 0 && metric(t, reg, "watch_buffered_bytes") == 0 })
}
