package readapi_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/readapi"
)

// twins are a real etcd and a server on a replica of it, at one revision.
type twins struct {
	etcd, mirror   grpc.ClientConnInterface
	rev, compactAt int64
}

// newTwins makes a history of some hundred revisions, the first half of it
// compacted, on 25 keys.
func newTwins(t *testing.T) *twins {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	c := cluster.Client(t)
	ctx := within(t, time.Minute)
	key := func(i int) string { return fmt.Sprintf("k%02d", i%25) }
	lease, err := c.Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	tw := &twins{}
	for i := range 400 {
		var ops []clientv3.Op
		switch i % 7 {
		case 3:
			ops = append(ops, clientv3.OpDelete(key(i*3)))
		case 5:
			ops = append(ops, clientv3.OpDelete(key(i), clientv3.WithRange(key(i)+"~")),
				clientv3.OpPut(key(i+7), "t"), clientv3.OpPut(key(i+11), fmt.Sprint(i), clientv3.WithLease(lease.ID)))
		case 6:
			ops = append(ops, clientv3.OpPut(key(i), ""))
		default:
			ops = append(ops, clientv3.OpPut(key(i*i), fmt.Sprint(i%5)))
		}
		resp, err := c.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		tw.rev = resp.Header.Revision
		if i == 200 {
			tw.compactAt = tw.rev
		}
	}
	if _, err := c.Compact(ctx, tw.compactAt, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	r := replicaOf(t, cluster.Save(t))
	status, err := c.Status(ctx, c.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	r.origin.EtcdID = status.Header.ClusterId
	tw.etcd = dial(t, cluster.Endpoints()[0])
	tw.mirror = serve(t, r, func(c *readapi.Config) { c.ProgressInterval = time.Hour }).conn(t)
	return tw
}

// dial returns a bare connection to an etcd at a URL.
func dial(t *testing.T, url string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+url[len("http://"):], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// anonymous removes from a header what must differ.
func anonymous(h *pb.ResponseHeader) {
	if h != nil {
		h.MemberId, h.RaftTerm = 0, 0
	}
}

// same compares an answer, or an error, of both.
func same(rt *rapid.T, req proto.Message, etcd, mirror proto.Message, etcdErr, mirrorErr error) {
	we, wm := status.Convert(etcdErr), status.Convert(mirrorErr)
	if we.Code() != wm.Code() || we.Message() != wm.Message() {
		rt.Fatalf("%v:\netcd:   %v\nmirror: %v", req, we, wm)
	}
	if etcdErr == nil && !proto.Equal(etcd, mirror) {
		rt.Fatalf("%v:\netcd:   %v\nmirror: %v", req, etcd, mirror)
	}
}

var someKey = rapid.OneOf(
	rapid.Custom(func(t *rapid.T) []byte { return fmt.Appendf(nil, "k%02d", rapid.IntRange(0, 26).Draw(t, "key")) }),
	rapid.SampledFrom([][]byte{{0}, []byte("k"), []byte("k1"), []byte("l"), []byte("zz"), {}}),
)

var someEnd = rapid.OneOf(rapid.Just([]byte(nil)), someKey, rapid.Just([]byte("l")), rapid.Just([]byte{0}))

func (tw *twins) someRev() *rapid.Generator[int64] {
	return rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(tw.compactAt-3, tw.compactAt+3),
		rapid.Int64Range(tw.compactAt, tw.rev), rapid.Int64Range(-1, tw.rev+3))
}

func (tw *twins) someRange() *rapid.Generator[*pb.RangeRequest] {
	bound := rapid.OneOf(rapid.Just(int64(0)), rapid.Just(int64(0)), rapid.Int64Range(-1, tw.rev+1))
	return rapid.Custom(func(t *rapid.T) *pb.RangeRequest {
		return &pb.RangeRequest{
			Key:               someKey.Draw(t, "key"),
			RangeEnd:          someEnd.Draw(t, "end"),
			Limit:             rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-1, 30)).Draw(t, "limit"),
			Revision:          tw.someRev().Draw(t, "revision"),
			SortOrder:         pb.RangeRequest_SortOrder(rapid.SampledFrom([]int{0, 0, 1, 2, 2, 9}).Draw(t, "order")),
			SortTarget:        pb.RangeRequest_SortTarget(rapid.SampledFrom([]int{0, 0, 1, 2, 3, 4, 9}).Draw(t, "target")),
			Serializable:      rapid.Bool().Draw(t, "serializable"),
			KeysOnly:          rapid.Bool().Draw(t, "keys only"),
			CountOnly:         rapid.IntRange(0, 5).Draw(t, "count only") == 0,
			MinModRevision:    bound.Draw(t, "min mod"),
			MaxModRevision:    bound.Draw(t, "max mod"),
			MinCreateRevision: bound.Draw(t, "min create"),
			MaxCreateRevision: bound.Draw(t, "max create"),
		}
	})
}

func TestDifferentialRange(t *testing.T) {
	tw := newTwins(t)
	etcd, mirror := pb.NewKVClient(tw.etcd), pb.NewKVClient(tw.mirror)
	rapid.Check(t, func(rt *rapid.T) {
		for _, req := range rapid.SliceOfN(tw.someRange(), 20, 20).Draw(rt, "requests") {
			e, errE := etcd.Range(t.Context(), req)
			m, errM := mirror.Range(t.Context(), req)
			anonymous(e.GetHeader())
			anonymous(m.GetHeader())
			same(rt, req, e, m, errE, errM)

			// etcd 3.7.3 sorts each chunk of such a stream for itself, which
			// repeats and skips keys: the truth is its Range.
			if req.SortTarget == pb.RangeRequest_KEY || req.SortOrder != pb.RangeRequest_NONE || hasBounds(req) || req.CountOnly {
				e, errE = whole(etcd.RangeStream(t.Context(), req))
			}
			m, errM = whole(mirror.RangeStream(t.Context(), req))
			same(rt, req, e, m, errE, errM)
		}
	})
}

func hasBounds(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// whole joins the chunks of a stream, as a client does.
func whole(s pb.KV_RangeStreamClient, err error) (*pb.RangeResponse, error) {
	all := &pb.RangeResponse{}
	for err == nil {
		var r *pb.RangeStreamResponse
		if r, err = s.Recv(); err == nil {
			proto.Merge(all, r.RangeResponse)
		}
	}
	if err != io.EOF {
		return nil, err
	}
	anonymous(all.Header)
	return all, nil
}

func (tw *twins) someTxn(depth int) *rapid.Generator[*pb.TxnRequest] {
	compare := rapid.Custom(func(t *rapid.T) *pb.Compare {
		c := &pb.Compare{
			Key: someKey.Draw(t, "key"), RangeEnd: someEnd.Draw(t, "end"),
			Target: pb.Compare_CompareTarget(rapid.IntRange(0, 4).Draw(t, "target")),
			Result: pb.Compare_CompareResult(rapid.IntRange(0, 3).Draw(t, "result")),
		}
		n := rapid.Int64Range(0, tw.rev).Draw(t, "number")
		switch rapid.IntRange(0, 4).Draw(t, "union") {
		case 0:
			c.TargetUnion = &pb.Compare_Version{Version: n % 5}
		case 1:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
		case 2:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
		case 3:
			c.TargetUnion = &pb.Compare_Value{Value: fmt.Append(nil, n%5)}
		case 4:
			c.TargetUnion = &pb.Compare_Lease{}
		}
		return c
	})
	ops := rapid.Custom(func(t *rapid.T) *pb.RequestOp {
		kind := rapid.IntRange(0, 20).Draw(t, "kind")
		switch {
		case kind == 0:
			return &pb.RequestOp{}
		case kind < 5 && depth > 0:
			return txnOp(tw.someTxn(depth-1).Draw(t, "nested"))
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: tw.someRange().Draw(t, "range")}}
	})
	return rapid.Custom(func(t *rapid.T) *pb.TxnRequest {
		return &pb.TxnRequest{
			Compare: rapid.SliceOfN(compare, 0, 3).Draw(t, "compares"),
			Success: rapid.SliceOfN(ops, 0, 3).Draw(t, "success"),
			Failure: rapid.SliceOfN(ops, 0, 3).Draw(t, "failure"),
		}
	})
}

func TestDifferentialTxn(t *testing.T) {
	tw := newTwins(t)
	etcd, mirror := pb.NewKVClient(tw.etcd), pb.NewKVClient(tw.mirror)
	answered := 0
	rapid.Check(t, func(rt *rapid.T) {
		for _, req := range rapid.SliceOfN(tw.someTxn(2), 20, 20).Draw(rt, "requests") {
			e, errE := etcd.Txn(t.Context(), req)
			m, errM := mirror.Txn(t.Context(), req)
			anonymous(e.GetHeader())
			anonymous(m.GetHeader())
			same(rt, req, e, m, errE, errM)
			if errE == nil {
				answered++
			}
		}
	})
	if answered < 200 {
		t.Errorf("only %d transactions were answered", answered)
	}
}

func (tw *twins) someWatch() *rapid.Generator[*pb.WatchCreateRequest] {
	return rapid.Custom(func(t *rapid.T) *pb.WatchCreateRequest {
		return &pb.WatchCreateRequest{
			Key:           someKey.Draw(t, "key"),
			RangeEnd:      someEnd.Draw(t, "end"),
			StartRevision: rapid.OneOf(rapid.Int64Range(tw.compactAt-2, tw.compactAt+5), rapid.Int64Range(-1, tw.rev)).Draw(t, "start"),
			WatchId:       rapid.SampledFrom([]int64{0, 0, 0, 0, 0, 0, 3, 12, -7}).Draw(t, "id"),
			PrevKv:        rapid.Bool().Draw(t, "prev"),
			Fragment:      rapid.Bool().Draw(t, "fragment"),
			Filters:       rapid.SliceOfN(rapid.SampledFrom([]pb.WatchCreateRequest_FilterType{0, 1}), 0, 1).Draw(t, "filters"),
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

func TestDifferentialWatch(t *testing.T) {
	tw := newTwins(t)
	seen := 0
	rapid.Check(t, func(rt *rapid.T) {
		reqs := rapid.SliceOfN(tw.someWatch(), 1, 20).Draw(rt, "watches")
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		e, err := watchAll(ctx, tw.etcd, reqs, tw.rev)
		if err != nil {
			rt.Fatalf("etcd: %v", err)
		}
		m, err := watchAll(ctx, tw.mirror, reqs, tw.rev)
		if err != nil {
			rt.Fatalf("mirror: %v", err)
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
