package source

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
	"github.com/heliograph/heliograph/wire"
)

// mirror is one accepted mirror. Its goroutines run within [mirror.run]: a
// reader and a writer of the control stream, one that answers read indexes, one
// that answers verify requests, and one that sends bulk.
type mirror struct {
	srv      *Server
	conn     *quic.Conn
	identity heliograph.Identity
	notAfter time.Time // of its certificate
	nodeID   string
	address  string
	gen      int64             // of the replica; the session ends with it
	origin   heliograph.Origin // of the replica, in that generation
	forks    []heliograph.Fork // from the mirror's origin to that one
	since    time.Time
	asks     bool // it follows another node, and gets heartbeats and answers
	log      *slog.Logger

	brake    brake
	control  *control
	reads    *reads
	verifies verifies
	leases   *leaseCursor
	acked    chan struct{} // capacity 1: applied rose
	heard    atomic.Int64  // when the last control frame came, in nanoseconds after since

	snapshot heliograph.Snapshot // nil without one; released by dropSnapshot

	mu       sync.Mutex
	progress *session.Progress
	slot     bool // one of the server's snapshots is this mirror's
}

// run serves the mirror until one of its goroutines fails, and returns why.
func (m *mirror) run(ctx context.Context) error {
	m.heard.Store(int64(time.Since(m.since))) // it need not have said anything yet
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, m.brake.pull)
	defer stop()
	g.Go(func() error { return m.readControl(ctx) })
	g.Go(func() error { return m.writeControl(ctx) })
	g.Go(func() error { return m.answerReads(ctx) })
	g.Go(func() error { return m.answerVerifies(ctx) })
	if !m.asks {
		g.Go(func() error { return m.sendBulk(ctx) })
	}
	return g.Wait()
}

// acknowledged takes the mirror's ack.
func (m *mirror) acknowledged(a wire.Ack) error {
	m.mu.Lock()
	rose, err := m.progress.Acked(a.AppliedLSN, a.DurableLSN)
	installed := m.progress.Installed()
	m.mu.Unlock()
	if err != nil {
		return end(heliograph.CodeProtocol, "ack: %v", err)
	}
	if installed {
		m.dropSnapshot()
	}
	if rose {
		select {
		case m.acked <- struct{}{}:
		default:
		}
	}
	return nil
}

// dropSnapshot releases the mirror's snapshot and its place, once.
func (m *mirror) dropSnapshot() {
	m.mu.Lock()
	had := m.slot
	m.slot = false
	m.mu.Unlock()
	if !had {
		return
	}
	if m.snapshot != nil {
		m.snapshot.Release()
	}
	m.srv.mu.Lock()
	m.srv.snapshots--
	m.srv.mu.Unlock()
}

func (m *mirror) checkGeneration() error {
	if m.srv.cfg.Replica.Generation() != m.gen {
		return end(heliograph.CodeReset, "the source's own data was replaced, or is of another origin now: connect again")
	}
	return nil
}

// unreadable ends a session because the source cannot read its own data.
func (m *mirror) unreadable(what string, err error) error {
	m.log.Error("replica cannot be read", "what", what, "err", err)
	return end(heliograph.CodeNotReady, "the source cannot read its %s", what)
}

func (m *mirror) cursor() session.Cursor {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.progress.Cursor()
}

func (m *mirror) next(limit session.Cursor, floor int64) session.Action {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.progress.Next(limit, floor)
}

func (m *mirror) catchUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.CatchUp()
}

// downstream returns what status says of the mirror.
func (m *mirror) downstream() heliograph.Downstream {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := heliograph.Downstream{
		Name:            m.identity.Name,
		Cluster:         m.identity.Cluster,
		Address:         m.address,
		State:           m.progress.State().String(),
		SentRevision:    m.progress.Sent(),
		AppliedRevision: m.progress.Applied(),
		DurableRevision: m.progress.Durable(),
		InFlightBytes:   m.progress.InFlight(),
		ConnectedMS:     time.Since(m.since).Milliseconds(),
	}
	if at, ok := m.progress.Oldest(); ok {
		d.LagMS = max(0, m.srv.nowMS()-at)
	}
	return d
}

// serve runs an accepted mirror and ends its connection.
func (m *mirror) serve(ctx context.Context) {
	if m.asks {
		m.log.Info("mirror of another node asks")
	} else {
		m.log.Info("mirror accepted", "rev", m.cursor().Whole(), "snapshot", m.snapshot != nil, "forks", len(m.forks))
	}
	err := m.run(ctx)
	e := endingOf(m.srv.life, err)
	m.srv.remove(m)
	if e == nil {
		if lost := context.Cause(m.conn.Context()); lost != nil {
			err = lost
		}
		m.log.Info("mirror gone", "rev", m.cursor().Whole(), "err", err)
		e = &ending{code: heliograph.CodeOK}
		m.srv.metrics.endings.WithLabelValues("ok").Inc()
		closeConn(m.conn, nil, nil, e)
		return
	}
	level := slog.LevelWarn
	if e.code == heliograph.CodeShuttingDown || e.code == heliograph.CodeReset {
		level = slog.LevelInfo
	}
	m.log.Log(ctx, level, "session ended", "code", e.code.String(), "rev", m.cursor().Whole(), "err", e.detail)
	m.srv.metrics.endings.WithLabelValues(e.code.String()).Inc()
	var last wire.Message
	if !m.control.broken {
		last = wire.Goodbye{Code: e.code, Detail: e.detail}
	}
	closeConn(m.conn, m.control.stream, last, e)
}
