package difftest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func (tw *Twins) someWatch() *rapid.Generator[*pb.WatchCreateRequest] {
	return rapid.Custom(func(t *rapid.T) *pb.WatchCreateRequest {
		return &pb.WatchCreateRequest{
			Key:           someKey.Draw(t, "key"),
			RangeEnd:      someEnd.Draw(t, "end"),
			StartRevision: rapid.OneOf(rapid.Int64Range(tw.CompactAt-2, tw.CompactAt+5), rapid.Int64Range(-1, tw.Rev)).Draw(t, "start"),
			WatchId:       rapid.SampledFrom([]int64{0, 0, 0, 0, 0, 0, 3, 12, -7}).Draw(t, "id"),
			PrevKv:        rapid.Bool().Draw(t, "prev"),
			Fragment:      rapid.Bool().Draw(t, "fragment"),
			Filters:       rapid.SliceOfN(rapid.SampledFrom([]pb.WatchCreateRequest_FilterType{0, 0, 1, 1, 2}), 0, 2).Draw(t, "filters"),
		}
	})
}

// told is what one watch of a stream was told.
type told struct {
	created []*pb.WatchResponse
	events  map[int64][]*mvccpb.Event
	ended   map[int64]*pb.WatchResponse
}

// watchAll opens the watches on one stream and returns what each was told up
// to rev. To know that it has all, it asks for progress, which is answered
// when all watches have caught up; those that are cancelled do not count.
func watchAll(ctx context.Context, conn grpc.ClientConnInterface, reqs []*pb.WatchCreateRequest, rev int64) (*told, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	got := &told{events: make(map[int64][]*mvccpb.Event), ended: make(map[int64]*pb.WatchResponse)}
	responses, failed := make(chan *pb.WatchResponse), make(chan error, 1)
	go func() {
		for {
			r, err := w.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case responses <- r:
			case <-ctx.Done():
				failed <- ctx.Err()
				return
			}
		}
	}()
	defer func() { cancel(); <-failed }()
	take := func(r *pb.WatchResponse) {
		anonymous(r.Header)
		switch {
		case r.Created:
			got.created = append(got.created, r)
		case r.Canceled:
			if got.ended[r.WatchId] == nil { // else the answer to our cancel
				got.ended[r.WatchId] = r
			}
		default:
			got.events[r.WatchId] = append(got.events[r.WatchId], r.Events...)
		}
	}
	for _, req := range reqs { // one after the other: etcd may answer out of order
		if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			return nil, err
		}
		for n := len(got.created); len(got.created) == n; {
			select {
			case r := <-responses:
				take(r)
			case err := <-failed:
				failed <- err
				return nil, err
			}
		}
	}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	live := func() (n int) {
		for _, c := range got.created {
			if _, ended := got.ended[c.WatchId]; !ended && !c.Canceled {
				n++
			}
		}
		return n
	}
	for live() > 0 {
		select {
		case r := <-responses:
			if r.WatchId == clientv3.InvalidWatchID && r.Header.Revision == rev {
				return got, nil
			}
			take(r)
		case <-again.C:
			// etcd counts watches that a compaction ended among those that
			// have not caught up, until they are cancelled.
			for id := range got.ended {
				if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}); err != nil {
					return nil, err
				}
			}
			if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
				return nil, err
			}
		case err := <-failed:
			failed <- err
			return nil, err
		}
	}
	return got, nil
}

// CheckWatch compares what watches are told that begin anywhere in the history,
// several on one stream.
func (tw *Twins) CheckWatch(t *testing.T) {
	seen := 0
	rapid.Check(t, func(rt *rapid.T) {
		reqs := rapid.SliceOfN(tw.someWatch(), 1, 20).Draw(rt, "watches")
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var g errgroup.Group
		var e, m *told
		g.Go(func() (err error) {
			if e, err = watchAll(ctx, tw.Etcd, reqs, tw.Rev); err != nil {
				return fmt.Errorf("etcd: %w", err)
			}
			return nil
		})
		g.Go(func() (err error) {
			if m, err = watchAll(ctx, tw.Mirror, reqs, tw.Rev); err != nil {
				return fmt.Errorf("mirror: %w", err)
			}
			return nil
		})
		if err := g.Wait(); err != nil {
			rt.Fatal(err)
		}
		if !slices.EqualFunc(e.created, m.created, func(a, b *pb.WatchResponse) bool { return proto.Equal(a, b) }) {
			rt.Fatalf("created:\netcd:   %v\nmirror: %v", e.created, m.created)
		}
		for _, c := range e.created {
			id := c.WatchId
			seen += len(e.events[id])
			if (e.ended[id] == nil) != (m.ended[id] == nil) || e.ended[id].GetCompactRevision() != m.ended[id].GetCompactRevision() {
				rt.Fatalf("watch %d ended:\netcd:   %v\nmirror: %v", id, e.ended[id], m.ended[id])
			}
			if !slices.EqualFunc(e.events[id], m.events[id], func(a, b *mvccpb.Event) bool { return proto.Equal(a, b) }) {
				rt.Fatalf("watch %d, events:\netcd:   %v\nmirror: %v", id, e.events[id], m.events[id])
			}
		}
	})
	if seen < 1000 {
		t.Errorf("only %d events were compared", seen)
	}
}
