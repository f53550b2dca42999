package readapi_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/heliograph/heliograph/readapi"
	"github.com/heliograph/heliograph/readapi/reads"
)

var (
	linearizable = &pb.RangeRequest{Key: []byte("a")}
	serializable = &pb.RangeRequest{Key: []byte("a"), Serializable: true}
)

func TestLinearizableReadWaitsForTheSourcesRevision(t *testing.T) {
	r := newReplica(t)
	r.put("a", "old")
	var head atomic.Int64
	head.Store(r.Applied() + 1)
	asked := make(chan struct{}, 100)
	srv := serve(t, r, func(c *readapi.Config) {
		c.ReadIndex = func(context.Context) (int64, error) {
			asked <- struct{}{}
			return head.Load(), nil
		}
	})
	kv := pb.NewKVClient(srv.conn(t))
	answer := make(chan *pb.RangeResponse, 1)
	go func() {
		resp, err := kv.Range(call(t), linearizable)
		if err != nil {
			t.Error(err)
		}
		answer <- resp
	}()
	<-asked
	resp, err := kv.Range(call(t), serializable)
	if err != nil || string(resp.Kvs[0].Value) != "old" {
		t.Fatalf("serializable: %v, %v", resp, err)
	}
	select {
	case resp := <-answer:
		t.Fatalf("answered before the revision was applied: %v", resp)
	default:
	}
	rev := r.put("a", "new")
	if resp := <-answer; resp == nil || string(resp.Kvs[0].Value) != "new" || resp.Header.Revision != rev {
		t.Errorf("got %v, want revision %d", resp, rev)
	}
}

func TestLinearizableReadWithoutASource(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1")
	var down atomic.Bool
	hang := func(ctx context.Context) (int64, error) { <-ctx.Done(); return 0, ctx.Err() }
	fail := func(context.Context) (int64, error) { return 0, errors.New("connection lost") }
	var ask atomic.Pointer[func(context.Context) (int64, error)]
	ask.Store(&fail)
	reg := prometheus.NewRegistry()
	srv := serve(t, r, func(c *readapi.Config) {
		c.ReadIndex = func(ctx context.Context) (int64, error) { return (*ask.Load())(ctx) }
		c.UpstreamAlive = func() error {
			if down.Load() {
				return errors.New("nothing heard for 31s")
			}
			return nil
		}
		c.Metrics = reg
	})
	conn := srv.conn(t)
	kv := pb.NewKVClient(conn)

	_, err := kv.Range(call(t), linearizable)
	wantStatus(t, err, codes.Unavailable, "connection lost")
	wantStatus(t, err, codes.Unavailable, "serializable reads")
	if got := metric(t, reg, "read_index_failures_total"); got != 1 {
		t.Errorf("%v failures counted", got)
	}
	// The source does not answer: the sentence arrives while the client
	// still waits, for every kind of read.
	ask.Store(&hang)
	_, err = kv.Range(within(t, time.Second), linearizable)
	wantStatus(t, err, codes.Unavailable, "did not say its revision in time")
	_, err = kv.Txn(within(t, time.Second), &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a")}})
	wantStatus(t, err, codes.Unavailable, "serializable reads")
	stream, err := kv.RangeStream(within(t, time.Second), linearizable)
	if err == nil {
		_, err = stream.Recv()
	}
	wantStatus(t, err, codes.Unavailable, "serializable reads")

	down.Store(true)
	began := time.Now()
	_, err = kv.Range(call(t), linearizable)
	wantStatus(t, err, codes.Unavailable, "nothing heard for 31s")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v to say what was known", took)
	}
	if _, err := kv.Range(call(t), serializable); err != nil {
		t.Errorf("serializable: %v", err)
	}
	needsLeader := metadata.AppendToOutgoingContext(call(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	_, err = kv.Range(needsLeader, serializable)
	wantStatus(t, err, codes.Unavailable, "etcdserver: no leader")
	st, err := pb.NewMaintenanceClient(conn).Status(call(t), &pb.StatusRequest{})
	if err != nil || len(st.Errors) != 1 || st.Leader == 0 {
		t.Errorf("status: %v, %v", st, err)
	}
}

func TestLinearizableReadOfALaggingMirrorSaysHowFarItIs(t *testing.T) {
	r := newReplica(t)
	srv := serve(t, r, func(c *readapi.Config) {
		c.ReadIndex = func(context.Context) (int64, error) { return 1000, nil }
		c.ReadTimeout = 50 * time.Millisecond
	})
	_, err := pb.NewKVClient(srv.conn(t)).Range(call(t), linearizable)
	wantStatus(t, err, codes.Unavailable, "")
}

func TestMaxStaleness(t *testing.T) {
	r := newReplica(t)
	var age atomic.Int64
	age.Store(-1)
	srv := serve(t, r, func(c *readapi.Config) {
		c.Staleness = func() (time.Duration, bool) { return time.Duration(age.Load()), age.Load() >= 0 }
	})
	kv := pb.NewKVClient(srv.conn(t))
	within5s := func() error {
		_, err := kv.Range(reads.WithMaxStaleness(call(t), 5*time.Second), serializable)
		return err
	}
	wantStatus(t, within5s(), codes.Unavailable, "does not know how old its data is")
	age.Store(int64(6 * time.Second))
	wantStatus(t, within5s(), codes.Unavailable, "6s old and the read allows at most 5s")
	age.Store(int64(4 * time.Second))
	if err := within5s(); err != nil {
		t.Error(err)
	}
	_, err := kv.Range(metadata.AppendToOutgoingContext(call(t), reads.MaxStalenessKey, "soon"), serializable)
	wantStatus(t, err, codes.InvalidArgument, "want a duration")
}

func TestMinRevision(t *testing.T) {
	r := newReplica(t)
	srv := serve(t, r)
	kv := pb.NewKVClient(srv.conn(t))
	rev := r.Applied() + 1
	_, err := kv.Range(reads.WithMinRevision(within(t, 200*time.Millisecond), rev), serializable)
	wantStatus(t, err, codes.Unavailable, "not yet 2")
	answer := make(chan *pb.RangeResponse, 1)
	go func() {
		resp, err := kv.Range(reads.WithMinRevision(call(t), rev), serializable)
		if err != nil {
			t.Error(err)
		}
		answer <- resp
	}()
	r.put("a", "1")
	if resp := <-answer; resp == nil || resp.Header.Revision < rev || len(resp.Kvs) != 1 {
		t.Errorf("got %v", resp)
	}
	for _, bad := range []string{"x", "-1", "99999999999999999999"} {
		_, err := kv.Range(metadata.AppendToOutgoingContext(call(t), reads.MinRevisionKey, bad), serializable)
		wantStatus(t, err, codes.InvalidArgument, "want a revision")
	}
}
