package readapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph/readapi"
	"github.com/heliograph/heliograph/readapi/reads"
)

func rangeOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func putOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func deleteOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}}
}

func txnOp(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func TestEtcdClientReads(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1", "b", "2")
	old := r.Applied()
	rev := r.put("a", "3")
	srv := serve(t, r)
	c := srv.client(t)
	got, err := c.Get(call(t), "", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend))
	if err != nil || len(got.Kvs) != 2 || string(got.Kvs[0].Value) != "3" || got.Header.Revision != rev {
		t.Fatalf("got %v, %v", got, err)
	}
	if h := got.Header; h.ClusterId != origin.EtcdID || h.MemberId == 0 || h.RaftTerm == 0 {
		t.Errorf("header %v", h)
	}
	got, err = c.Get(call(t), "a", clientv3.WithRev(old))
	if err != nil || string(got.Kvs[0].Value) != "1" {
		t.Errorf("at %d: %v, %v", old, got, err)
	}
	if _, err := c.Get(call(t), "a", clientv3.WithRev(rev+1)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("future revision: %v", err)
	}
	r.compact(rev)
	if _, err := c.Get(call(t), "a", clientv3.WithRev(old)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("compacted revision: %v", err)
	}
	txn, err := c.Txn(call(t)).If(clientv3.Compare(clientv3.Value("a"), "=", "3")).
		Then(clientv3.OpGet("a"), clientv3.OpGet("b")).Else(clientv3.OpGet("x")).Commit()
	if err != nil || !txn.Succeeded || len(txn.Responses) != 2 || txn.Header.Revision != rev {
		t.Errorf("txn: %v, %v", txn, err)
	}
	if _, err := c.Txn(call(t)).Then(clientv3.OpGet("a", clientv3.WithRev(old))).Commit(); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("txn at a compacted revision: %v", err)
	}
}

func TestRequestsThatEtcdRefuses(t *testing.T) {
	srv := serve(t, newReplica(t), func(c *readapi.Config) { c.MaxTxnOps = 2 })
	kv := pb.NewKVClient(srv.conn(t))
	key := []byte("a")
	for name, test := range map[string]struct {
		r    *pb.RangeRequest
		want error
	}{
		"no key":     {&pb.RangeRequest{}, rpctypes.ErrGRPCEmptyKey},
		"bad order":  {&pb.RangeRequest{Key: key, SortOrder: 9}, rpctypes.ErrGRPCInvalidSortOption},
		"bad target": {&pb.RangeRequest{Key: key, SortTarget: -1}, rpctypes.ErrGRPCInvalidSortOption},
	} {
		_, err := kv.Range(call(t), test.r)
		if !errors.Is(err, test.want) {
			t.Errorf("range, %s: %v", name, err)
		}
		s, err := kv.RangeStream(call(t), test.r)
		if err == nil {
			_, err = s.Recv()
		}
		if !errors.Is(err, test.want) {
			t.Errorf("stream, %s: %v", name, err)
		}
	}
	for _, r := range []*pb.RangeRequest{
		{Key: key, SortOrder: pb.RangeRequest_DESCEND},
		{Key: key, MinModRevision: 1},
	} {
		s, err := kv.RangeStream(call(t), r)
		if err == nil {
			_, err = s.Recv()
		}
		wantStatus(t, err, codes.Unimplemented, "RangeStream does not support")
	}
	deep := &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}}
	for range 3 {
		deep = &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(deep)}}
	}
	for name, test := range map[string]struct {
		r    *pb.TxnRequest
		want error
	}{
		"too many":        {&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a"), rangeOp("a"), rangeOp("a")}}, rpctypes.ErrGRPCTooManyOps},
		"too deep":        {deep, rpctypes.ErrGRPCTooManyOps},
		"empty op":        {&pb.TxnRequest{Failure: []*pb.RequestOp{{}}}, rpctypes.ErrGRPCKeyNotFound},
		"no key":          {&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("")}}, rpctypes.ErrGRPCEmptyKey},
		"compare, no key": {&pb.TxnRequest{Compare: []*pb.Compare{{}}}, rpctypes.ErrGRPCEmptyKey},
	} {
		if _, err := kv.Txn(call(t), test.r); !errors.Is(err, test.want) {
			t.Errorf("txn, %s: %v", name, err)
		}
	}
}

func TestNestedReadsSeeOneRevision(t *testing.T) {
	r := newReplica(t)
	r.put("x", "0", "y", "0")
	srv := serve(t, r)
	kv := pb.NewKVClient(srv.conn(t))
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := 1; ctx.Err() == nil; i++ {
			v := fmt.Sprint(i)
			r.put("x", v, "y", v)
		}
	}()
	nested := &pb.TxnRequest{Success: []*pb.RequestOp{
		rangeOp("x"),
		txnOp(&pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte("y"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{}}},
			Success: []*pb.RequestOp{rangeOp("y")},
		}),
	}}
	for range 500 {
		resp, err := kv.Txn(call(t), nested)
		if err != nil {
			t.Fatal(err)
		}
		x := resp.Responses[0].GetResponseRange().Kvs[0]
		y := resp.Responses[1].GetResponseTxn().Responses[0].GetResponseRange().Kvs[0]
		if x.ModRevision != y.ModRevision || x.ModRevision != resp.Header.Revision {
			t.Fatalf("one transaction at revisions %d, %d and %d", x.ModRevision, y.ModRevision, resp.Header.Revision)
		}
	}
	cancel()
	<-written
}

func TestNestedReadOfAClientThatLeavesHarmsNobody(t *testing.T) {
	r := newReplica(t)
	for i := range 2000 {
		r.put(fmt.Sprintf("k%04d", i), strings.Repeat("x", 100))
	}
	srv := serve(t, r)
	kv := pb.NewKVClient(srv.conn(t))
	all := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Serializable: true}}}
	r1 := &pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{all, all, all, all}})}}
	for i := range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		stop := make(chan struct{})
		go func() { // races the handler, at a different point each time
			for range i * 1000 {
			}
			cancel()
			close(stop)
		}()
		_, _ = kv.Txn(ctx, r1) // cancelled, or not
		<-stop
	}
	if _, err := kv.Txn(call(t), r1); err != nil {
		t.Error(err)
	}
}

func TestRangeStreamEqualsRange(t *testing.T) {
	r := newReplica(t)
	for i := range 300 {
		r.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", i*20))
	}
	at := r.Applied()
	srv := serve(t, r, func(c *readapi.Config) { c.MaxRequestBytes = 8 << 10 })
	kv := pb.NewKVClient(srv.conn(t))
	for _, req := range []*pb.RangeRequest{
		{Key: []byte("k"), RangeEnd: []byte("l")},
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 1},
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 10},
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 137},
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 300},
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 1000},
		{Key: []byte("k"), RangeEnd: []byte("l"), KeysOnly: true},
		{Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true},
		{Key: []byte("k"), RangeEnd: []byte("l"), Revision: at - 100},
		{Key: []byte("k007")},
		{Key: []byte("none")},
		{Key: []byte{0}, RangeEnd: []byte{0}},
	} {
		want, err := kv.Range(call(t), req)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := kv.RangeStream(call(t), req)
		if err != nil {
			t.Fatal(err)
		}
		got, chunks := &pb.RangeResponse{}, 0
		for ; ; chunks++ {
			resp, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%v: %v", req, err)
			}
			part := resp.RangeResponse
			if got.Header != nil {
				t.Errorf("%v: a chunk after the one with the header", req)
			}
			got.Header, got.More, got.Count = part.Header, part.More, part.Count
			got.Kvs = append(got.Kvs, part.Kvs...)
			if n := proto.Size(part); n > 64<<10 {
				t.Errorf("%v: a chunk of %d bytes", req, n)
			}
		}
		if !proto.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", req, got, want)
		}
		if len(want.Kvs) == 300 && !req.KeysOnly && chunks < 10 {
			t.Errorf("%v: in %d chunks", req, chunks)
		}
	}
}

func TestRangeStreamKeepsItsRevision(t *testing.T) {
	r := newReplica(t)
	for i := range 200 {
		r.put(fmt.Sprintf("k%03d", i), strings.Repeat("v", 4<<10))
	}
	rev := r.Applied()
	srv := serve(t, r, func(c *readapi.Config) { c.MaxRequestBytes = 4 << 10 })
	stream, err := pb.NewKVClient(srv.conn(t)).RangeStream(call(t), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	var kvs []*mvccpb.KeyValue
	var header *pb.ResponseHeader
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(kvs) == 0 {
			for i := range 200 {
				r.delete(fmt.Sprintf("k%03d", i))
			}
		}
		kvs = append(kvs, resp.RangeResponse.Kvs...)
		header = resp.RangeResponse.Header
	}
	if len(kvs) != 200 || header.GetRevision() != rev {
		t.Errorf("%d keys at revision %d, want 200 at %d", len(kvs), header.GetRevision(), rev)
	}
}

func TestEveryWriteIsRefused(t *testing.T) {
	r := newReplica(t)
	before := r.Applied()
	srv := serve(t, r)
	conn := srv.conn(t)
	kv, lease, maint := pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewMaintenanceClient(conn)
	cluster, auth := pb.NewClusterClient(conn), pb.NewAuthClient(conn)
	txn := func(r *pb.TxnRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := kv.Txn(ctx, r); return err }
	}
	key := []byte("a")
	for name, do := range map[string]func(context.Context) error{
		"put": func(ctx context.Context) error { _, err := kv.Put(ctx, &pb.PutRequest{Key: key}); return err },
		"delete": func(ctx context.Context) error {
			_, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
			return err
		},
		"compact": func(ctx context.Context) error {
			_, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 1})
			return err
		},
		"txn put":           txn(&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a"), putOp("a")}}),
		"txn delete":        txn(&pb.TxnRequest{Success: []*pb.RequestOp{deleteOp("a")}}),
		"txn put not taken": txn(&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}, Failure: []*pb.RequestOp{putOp("a")}}),
		"txn nested put":    txn(&pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{Failure: []*pb.RequestOp{putOp("a")}})}}),
		"grant": func(ctx context.Context) error {
			_, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 5})
			return err
		},
		"revoke": func(ctx context.Context) error {
			_, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{})
			return err
		},
		"keep-alive": func(ctx context.Context) error {
			s, err := lease.LeaseKeepAlive(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"alarm": func(ctx context.Context) error {
			_, err := maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE})
			return err
		},
		"defragment":  func(ctx context.Context) error { _, err := maint.Defragment(ctx, &pb.DefragmentRequest{}); return err },
		"move leader": func(ctx context.Context) error { _, err := maint.MoveLeader(ctx, &pb.MoveLeaderRequest{}); return err },
		"downgrade":   func(ctx context.Context) error { _, err := maint.Downgrade(ctx, &pb.DowngradeRequest{}); return err },
		"member add":  func(ctx context.Context) error { _, err := cluster.MemberAdd(ctx, &pb.MemberAddRequest{}); return err },
		"member remove": func(ctx context.Context) error {
			_, err := cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{})
			return err
		},
		"member update": func(ctx context.Context) error {
			_, err := cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{})
			return err
		},
		"member promote": func(ctx context.Context) error {
			_, err := cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{})
			return err
		},
		"auth enable": func(ctx context.Context) error { _, err := auth.AuthEnable(ctx, &pb.AuthEnableRequest{}); return err },
		"user add": func(ctx context.Context) error {
			_, err := auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "x"})
			return err
		},
		"role list": func(ctx context.Context) error { _, err := auth.RoleList(ctx, &pb.AuthRoleListRequest{}); return err },
	} {
		err := do(call(t))
		wantStatus(t, err, codes.FailedPrecondition, "cluster prod-us (10.0.0.5:7400)")
		if !errors.Is(reads.Error(err), reads.ErrReadOnly) {
			t.Errorf("%s: %v is not recognised", name, err)
		}
		var refusal *reads.ReadOnlyError
		if !errors.As(reads.Error(err), &refusal) || refusal.Source == "" || refusal.Method == "" {
			t.Errorf("%s: %#v", name, refusal)
		}
	}
	if r.Applied() != before {
		t.Errorf("the revision went from %d to %d", before, r.Applied())
	}
	_, err := srv.client(t).Put(call(t), "a", "1")
	if !errors.Is(reads.Error(err), reads.ErrReadOnly) {
		t.Errorf("through etcd's client: %v", err)
	}
	_, err = srv.client(t).Get(call(t), "a", clientv3.WithRev(1<<40))
	if errors.Is(reads.Error(err), reads.ErrReadOnly) || reads.Error(nil) != nil {
		t.Error("other errors are recognised too")
	}
}
