package readapi_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/heliograph/heliograph/readapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a readapi.Server being served.
type server struct {
	addr string
	stop func() error // ends it and returns Serve's error
}

var errStopped = errors.New("test is over")

// serve serves r; the functions change the configuration.
func serve(tb testing.TB, r readapi.Replica, change ...func(*readapi.Config)) *server {
	tb.Helper()
	cfg := readapi.Config{
		Replica:          r,
		ReadIndex:        func(context.Context) (int64, error) { return r.Applied(), nil },
		Source:           func() string { return "cluster prod-us (10.0.0.5:7400)" },
		MemberName:       "eu-1",
		AdvertiseClients: []string{"http://mirror.example:2379"},
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := readapi.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, lis) }()
	stopped := false
	srv := &server{addr: lis.Addr().String()}
	srv.stop = func() error {
		cancel(errStopped)
		stopped = true
		return <-served
	}
	tb.Cleanup(func() {
		if !stopped {
			if err := srv.stop(); err != errStopped {
				tb.Errorf("Serve: %v, want its context's cause", err)
			}
		}
	})
	return srv
}

// client returns an etcd client of the server.
func (s *server) client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.addr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// conn returns a bare connection to the server, which retries nothing.
func (s *server) conn(tb testing.TB, opts ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	c, err := grpc.NewClient("passthrough:///"+s.addr, append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// within returns a context for one call.
func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), d)
	tb.Cleanup(cancel)
	return ctx
}

// call is long enough for every call of these tests.
func call(tb testing.TB) context.Context { return within(tb, 30*time.Second) }

// wantStatus checks an error's code and that its text contains part.
func wantStatus(tb testing.TB, err error, code codes.Code, part string) {
	tb.Helper()
	if got := status.Code(err); got != code || !strings.Contains(status.Convert(err).Message(), part) {
		tb.Errorf("got %v, want %v with %q", err, code, part)
	}
}

// until waits for a condition.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			tb.Fatalf("still not: %s", what)
		}
	}
}

// metric returns the sum of a metric over its labels.
func metric(tb testing.TB, reg prometheus.Gatherer, name string) (sum float64) {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "heliograph_readapi_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func TestConfigNamesTheBadField(t *testing.T) {
	good := readapi.Config{
		Replica:    emptyReplica(t),
		ReadIndex:  func(context.Context) (int64, error) { return 0, nil },
		Source:     func() string { return "" },
		MemberName: "eu-1",
	}
	for field, spoil := range map[string]func(*readapi.Config){
		"Replica":          func(c *readapi.Config) { c.Replica = nil },
		"ReadIndex":        func(c *readapi.Config) { c.ReadIndex = nil },
		"Source":           func(c *readapi.Config) { c.Source = nil },
		"MemberName":       func(c *readapi.Config) { c.MemberName = "" },
		"ProgressInterval": func(c *readapi.Config) { c.ProgressInterval = time.Millisecond },
		"MaxTxnOps":        func(c *readapi.Config) { c.MaxTxnOps = -1 },
		"ReadTimeout":      func(c *readapi.Config) { c.ReadTimeout = -1 },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := readapi.New(cfg); err == nil || !strings.Contains(err.Error(), "Config."+field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := readapi.New(good); err != nil {
		t.Error(err)
	}
}

func TestServeOnlyOnce(t *testing.T) {
	s, err := readapi.New(readapi.Config{
		Replica:    newReplica(t),
		ReadIndex:  func(context.Context) (int64, error) { return 0, nil },
		Source:     func() string { return "" },
		MemberName: "eu-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errStopped)
	for _, want := range []error{errStopped, nil} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(ctx, lis); err == nil || want != nil && err != want {
			t.Errorf("Serve: %v, want %v", err, want)
		}
		if _, err := lis.Accept(); err == nil {
			t.Error("the listener is still open")
		}
	}
}

func TestNothingIsServedBeforeTheFirstSnapshot(t *testing.T) {
	r := emptyReplica(t)
	srv := serve(t, r)
	conn := srv.conn(t)
	health := healthpb.NewHealthClient(conn)
	got, err := health.Check(call(t), &healthpb.HealthCheckRequest{})
	if err != nil || got.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v, %v", got, err)
	}
	calls := map[string]func() error{
		"range": func() error {
			_, err := pb.NewKVClient(conn).Range(call(t), &pb.RangeRequest{Key: []byte("a"), Serializable: true})
			return err
		},
		"linearizable range": func() error {
			_, err := pb.NewKVClient(conn).Range(call(t), &pb.RangeRequest{Key: []byte("a")})
			return err
		},
		"stream": func() error {
			s, err := pb.NewKVClient(conn).RangeStream(call(t), &pb.RangeRequest{Key: []byte("a")})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"txn": func() error {
			_, err := pb.NewKVClient(conn).Txn(call(t), &pb.TxnRequest{})
			return err
		},
		"watch": func() error {
			s, err := pb.NewWatchClient(conn).Watch(call(t))
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"lease": func() error {
			_, err := pb.NewLeaseClient(conn).LeaseTimeToLive(call(t), &pb.LeaseTimeToLiveRequest{ID: 1})
			return err
		},
		"leases": func() error {
			_, err := pb.NewLeaseClient(conn).LeaseLeases(call(t), &pb.LeaseLeasesRequest{})
			return err
		},
		"status": func() error {
			_, err := pb.NewMaintenanceClient(conn).Status(call(t), &pb.StatusRequest{})
			return err
		},
		"hashkv": func() error {
			_, err := pb.NewMaintenanceClient(conn).HashKV(call(t), &pb.HashKVRequest{})
			return err
		},
		"hash": func() error {
			_, err := pb.NewMaintenanceClient(conn).Hash(call(t), &pb.HashRequest{})
			return err
		},
		"snapshot": func() error {
			s, err := pb.NewMaintenanceClient(conn).Snapshot(call(t), &pb.SnapshotRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	}
	for name, do := range calls {
		t.Run(name, func(t *testing.T) {
			wantStatus(t, do(), codes.Unavailable, "holds no data yet: bootstrapping")
		})
	}
	r.open(t.TempDir() + "/db")
	until(t, "serving", func() bool {
		got, err := health.Check(call(t), &healthpb.HealthCheckRequest{})
		return err == nil && got.Status == healthpb.HealthCheckResponse_SERVING
	})
	if err := calls["linearizable range"](); err != nil {
		t.Error(err)
	}
}

func TestStopEndsWatchesAtOnceAndStalledClientsSoon(t *testing.T) {
	r := newReplica(t)
	srv := serve(t, r, func(c *readapi.Config) { c.StopTimeout = 300 * time.Millisecond })
	watching, err := pb.NewWatchClient(srv.conn(t)).Watch(call(t))
	if err != nil {
		t.Fatal(err)
	}
	open(t, watching, &pb.WatchCreateRequest{Key: []byte("a")})
	// A client that never reads: its stream is stuck in Send.
	stalled, err := pb.NewWatchClient(srv.conn(t)).Watch(call(t))
	if err != nil {
		t.Fatal(err)
	}
	send(t, stalled, &pb.WatchCreateRequest{Key: []byte("big"), StartRevision: 1})
	for range 16 {
		r.put("big", strings.Repeat("x", 1<<20))
	}
	began := time.Now()
	if err := srv.stop(); err != errStopped {
		t.Errorf("Serve: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	_, err = watching.Recv()
	wantStatus(t, err, codes.Unavailable, status.Convert(rpctypes.ErrGRPCStopped).Message())
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	reg := prometheus.NewRegistry()
	srv := serve(t, newReplica(t), func(c *readapi.Config) { c.MaxConnections, c.Metrics = 1, reg })
	first := srv.conn(t)
	if _, err := pb.NewClusterClient(first).MemberList(call(t), &pb.MemberListRequest{}); err != nil {
		t.Fatal(err)
	}
	second := srv.conn(t)
	_, err := pb.NewClusterClient(second).MemberList(call(t), &pb.MemberListRequest{})
	wantStatus(t, err, codes.Unavailable, "")
	second.Close() // it would try again, and take the place
	first.Close()
	third := srv.conn(t)
	until(t, "a place is free again", func() bool {
		_, err := pb.NewClusterClient(third).MemberList(call(t), &pb.MemberListRequest{})
		return err == nil
	})
	if got := metric(t, reg, "connections_refused_total"); got < 1 {
		t.Errorf("%v connections counted as refused", got)
	}
}

func TestOversizeRequestEndsOnlyItself(t *testing.T) {
	srv := serve(t, newReplica(t), func(c *readapi.Config) { c.MaxRequestBytes = 1 << 20 })
	kv := pb.NewKVClient(srv.conn(t))
	_, err := kv.Range(call(t), &pb.RangeRequest{Key: make([]byte, 2<<20)})
	wantStatus(t, err, codes.ResourceExhausted, "larger than max")
	if _, err := kv.Range(call(t), &pb.RangeRequest{Key: []byte("a")}); err != nil {
		t.Error(err)
	}
}

func TestAdmitDecidesOnEveryCallButHealth(t *testing.T) {
	srv := serve(t, newReplica(t), func(c *readapi.Config) {
		c.Admit = func(context.Context) error { return errors.New("start the mirror with --reads=anyone") }
	})
	conn := srv.conn(t)
	_, err := pb.NewKVClient(conn).Range(call(t), &pb.RangeRequest{Key: []byte("a")})
	wantStatus(t, err, codes.PermissionDenied, "--reads=anyone")
	w, err := pb.NewWatchClient(conn).Watch(call(t))
	if err == nil {
		_, err = w.Recv()
	}
	wantStatus(t, err, codes.PermissionDenied, "--reads=anyone")
	if _, err := healthpb.NewHealthClient(conn).Check(call(t), &healthpb.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
}
