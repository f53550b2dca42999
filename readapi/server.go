package readapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// Limits of the transport.
const (
	maxHeaderBytes = 64 << 10
	// maxSendBytes is gRPC's own ceiling, and etcd's: a client may ask for
	// the whole database in one Range.
	maxSendBytes = 1<<31 - 1
	// minPing is the shortest interval at which clients may ping; etcd's is
	// the same, and clients are configured for it.
	minPing = 5 * time.Second
	// A client that vanished without a word must not hold its watches for
	// hours: its connection is probed after a minute of silence.
	pingAfter   = time.Minute
	pingTimeout = 20 * time.Second
	// handshakeTimeout ends connections that never become HTTP/2.
	handshakeTimeout = 10 * time.Second
)

// Server is the etcd v3 API on one replica.
type Server struct {
	cfg      Config
	memberID uint64
	metrics  *metrics
	rounds   *rounds
	budget   *watchBudget
	streams  *streams
	health   *health.Server

	served    atomic.Bool
	base      context.Context // of work that requests share; set by Serve before the first request
	receivers sync.WaitGroup  // goroutines that end when gRPC ends their stream
}

// New returns a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:      cfg,
		memberID: memberID(cfg.MemberName),
		budget:   &watchBudget{perStream: cfg.WatchBufferBytes, total: cfg.WatchBuffersBytes, maxWatches: int64(cfg.MaxWatches)},
		streams:  newStreams(),
		health:   health.NewServer(),
	}
	if s.metrics, err = newMetrics(cfg.Metrics, s.budget); err != nil {
		return nil, err
	}
	s.rounds = &rounds{ask: s.askAndApply, metrics: s.metrics}
	return s, nil
}

// Serve accepts clients on lis, which it closes, until ctx ends; it then lets
// calls under way finish within Config.StopTimeout, ends watches at once, and
// returns the context's cause when everything it started has stopped. Another
// error says why the listener failed. Serve may be called once.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	if s.served.Swap(true) {
		lis.Close()
		return errors.New("readapi: Serve called twice")
	}
	base, cancelBase := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelBase()
	s.base = base
	g := s.register()

	doors := newSplitter(newConnLimit(lis, s.cfg.MaxConnections, s.metrics), s.cfg.TLS)
	web := s.webServer()
	running, stop := context.WithCancel(ctx)
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { s.monitor(running) })
	background.Go(doors.run)
	background.Go(func() { _ = web.Serve(doors.http) }) // its error is that of doors.grpc
	background.Go(func() {
		<-running.Done()
		doors.close() // before gRPC looks for those that are still to come
		s.shutDown(g, web, doors, cancelBase)
	})
	err := g.Serve(doors.grpc)
	stop()
	background.Wait()
	doors.cut()
	s.rounds.wg.Wait()
	s.receivers.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// shutDown ends g and web within Config.StopTimeout. Read-index rounds go on until
// the calls that wait for them have ended.
func (s *Server) shutDown(g *grpc.Server, web *http.Server, doors *splitter, cancelBase context.CancelFunc) {
	s.health.Shutdown()
	s.streams.end(errStopping, func(st *stream) bool { return st.endless })
	drained := make(chan struct{})
	var patience sync.WaitGroup
	patience.Go(func() {
		limit := time.NewTimer(s.cfg.StopTimeout)
		defer limit.Stop()
		select {
		case <-drained:
		case <-limit.C:
			cancelBase()
			doors.cut() // also those that gRPC has not come to know yet
			g.Stop()
		}
	})
	g.GracefulStop()
	_ = web.Shutdown(context.Background()) // waits for no longer than cut
	close(drained)
	patience.Wait()
	cancelBase()
}

// register builds the gRPC server.
func (s *Server) register() *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(s.cfg.MaxRequestBytes + requestOverheadBytes),
		grpc.MaxSendMsgSize(maxSendBytes),
		grpc.MaxConcurrentStreams(s.cfg.MaxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WaitForHandlers(true),
	}
	if s.cfg.TLS != nil {
		opts = append(opts, grpc.Creds(newBegunTLS(s.cfg.TLS)))
	}
	g := grpc.NewServer(opts...)
	pb.RegisterKVServer(g, &kvServer{Server: s})
	pb.RegisterWatchServer(g, &watchServer{Server: s})
	pb.RegisterLeaseServer(g, &leaseServer{Server: s})
	pb.RegisterMaintenanceServer(g, &maintenanceServer{Server: s, scans: make(chan struct{}, maxScans)})
	pb.RegisterClusterServer(g, &clusterServer{Server: s})
	pb.RegisterAuthServer(g, &authServer{Server: s})
	healthpb.RegisterHealthServer(g, s.health)
	return g
}
