package source

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
)

// Server serves one replica to mirrors. It is safe for concurrent use.
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	feed    *feed
	spool   *spool
	began   time.Time
	served  atomic.Bool
	life    context.Context // of Serve; set before the first connection

	mu        sync.Mutex
	mirrors   map[*mirror]struct{}
	snapshots int // mirrors that are being sent one, or have not installed it
}

// New returns a server for cfg. It starts nothing. The error names the field
// that is wrong.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg:     cfg,
		log:     cfg.Log.With("cluster", string(cfg.Cluster)),
		metrics: m,
		feed:    newFeed(cfg, m),
		spool:   &spool{replica: cfg.Replica, wait: cfg.SnapshotWait},
		began:   time.Now(),
		mirrors: make(map[*mirror]struct{}),
	}, nil
}

// quicConfig is for a peer that has proved nothing: it may open one stream, once,
// and make this side keep a few kilobytes.
func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           5 * time.Second,
		MaxIdleTimeout:                 15 * time.Second,
		KeepAlivePeriod:                5 * time.Second,
		MaxIncomingStreams:             1,
		RequireStreamCreditRelease:     true,
		MaxIncomingUniStreams:          -1,
		InitialStreamReceiveWindow:     16 << 10,
		MaxStreamReceiveWindow:         64 << 10,
		InitialConnectionReceiveWindow: 16 << 10,
		MaxConnectionReceiveWindow:     64 << 10,
	}
}

// Serve accepts mirrors on conn until ctx ends; then it tells them goodbye, waits
// for at most ShutdownTimeout until they have gone, and returns nil. It returns
// an error if the socket fails. Everything that it started has stopped when it
// returns, and conn is closed. It can be called once.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	if s.served.Swap(true) {
		return errors.New("source: Serve was called before")
	}
	defer conn.Close()
	gate := newGate(s.cfg, func(addr net.Addr, err error) {
		s.metrics.handshakes.Inc()
		s.log.Info("handshake failed", "address", addr.String(), "err", err)
	})
	transport := &quic.Transport{Conn: conn, VerifySourceAddress: gate.suspicious, ConnContext: gate.enter}
	listener, err := transport.Listen(s.cfg.TLS, quicConfig())
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	s.life = ctx
	g.Go(func() error { return s.feed.run(ctx) })
	g.Go(func() error { return s.accept(ctx, listener, gate) })
	<-ctx.Done()

	// Those that do not go in time are cut off.
	cut := time.AfterFunc(s.cfg.ShutdownTimeout, func() { _ = transport.Close() })
	err = g.Wait()
	s.spool.work.Wait()
	cut.Stop()
	_ = transport.Close()
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// accept serves connections until ctx ends or the listener fails, and waits for
// them.
func (s *Server) accept(ctx context.Context, listener *quic.Listener, gate *gate) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	defer func() { _ = listener.Close() }() // turns away who has not been accepted yet
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			return err
		}
		gate.accept(conn.Context())
		conns.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stop := context.AfterFunc(conn.Context(), cancel)
			defer stop()
			s.serveConn(ctx, conn)
		})
	}
}

// remove gives up a mirror's place.
func (s *Server) remove(m *mirror) {
	m.dropSnapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.mirrors[m]; ok {
		delete(s.mirrors, m)
		s.metrics.mirrors.Dec()
	}
}

func (s *Server) fromAddressLocked(conn *quic.Conn) int {
	host, n := hostOf(conn.RemoteAddr()), 0
	for m := range s.mirrors {
		if hostOf(m.conn.RemoteAddr()) == host {
			n++
		}
	}
	return n
}

// Downstreams returns the mirrors that follow now, by name.
func (s *Server) Downstreams() []heliograph.Downstream {
	s.mu.Lock()
	mirrors := make([]*mirror, 0, len(s.mirrors))
	for m := range s.mirrors {
		if !m.asks {
			mirrors = append(mirrors, m)
		}
	}
	s.mu.Unlock()
	list := make([]heliograph.Downstream, 0, len(mirrors))
	for _, m := range mirrors {
		list = append(list, m.downstream())
	}
	slices.SortFunc(list, func(a, b heliograph.Downstream) int {
		return strings.Compare(a.Name+a.Address, b.Name+b.Address)
	})
	return list
}

// nowMS returns milliseconds of a clock that does not go back.
func (s *Server) nowMS() int64 { return time.Since(s.began).Milliseconds() }
