package source

import (
	"context"
	"errors"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
	"github.com/heliograph/heliograph/wire"
)

// serveConn serves one connection to its end. ctx ends when the server stops or
// the connection is lost.
func (s *Server) serveConn(ctx context.Context, conn *quic.Conn) {
	stream, hello, frames, err := s.readHello(ctx, conn)
	if err != nil {
		s.turnAway(conn, err)
		return
	}
	m, refusal := s.admit(ctx, conn, hello)
	if refusal != nil {
		m.refuse(stream, hello, refusal)
		return
	}
	m.control = newControl(stream, frames, &m.brake)
	if err := m.control.write(s.accepted(m)); err != nil {
		s.remove(m)
		m.log.Info("mirror gone", "err", err)
		closeConn(conn, nil, nil, &ending{code: heliograph.CodeTimeout})
		return
	}
	m.serve(ctx)
}

// readHello reads the first frame of the first stream.
func (s *Server) readHello(ctx context.Context, conn *quic.Conn) (*quic.Stream, wire.Hello, *wire.Reader, error) {
	deadline := time.Now().Add(s.cfg.HelloTimeout)
	wait, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	stream, err := conn.AcceptStream(wait)
	if err != nil {
		if ctx.Err() == nil && wait.Err() != nil {
			err = s.helloTimeout()
		}
		return nil, wire.Hello{}, nil, err
	}
	stream.SetPriority(controlUrgency, true)
	_ = stream.SetReadDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = stream.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	frames := newFrames(stream)
	t, payload, err := frames.Next()
	if err == nil && t != wire.TypeHello {
		err = wire.ErrUnexpected
	}
	var hello wire.Hello
	if err == nil {
		hello, err = wire.DecodeHello(payload)
	}
	switch {
	case err == nil:
		return stream, hello, frames, nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case isTimeout(err):
		err = s.helloTimeout()
	default:
		err = frameEnding(t, err)
	}
	return nil, wire.Hello{}, nil, err
}

func (s *Server) helloTimeout() error {
	s.metrics.helloTimeouts.Inc()
	return end(heliograph.CodeTimeout, "no hello within %v", s.cfg.HelloTimeout)
}

// turnAway closes a connection that said no hello.
func (s *Server) turnAway(conn *quic.Conn, err error) {
	e := endingOf(s.life, err)
	if e == nil {
		e = &ending{code: heliograph.CodeOK}
	} else {
		s.metrics.refusals.WithLabelValues(e.code.String()).Inc()
		s.log.Warn("connection refused", "peer", conn.RemoteAddr().String(), "code", e.code.String(), "err", e.detail)
	}
	closeConn(conn, nil, nil, e)
}

// admit decides on a hello and makes a place for the mirror. With a refusal only
// the mirror's identity is set.
func (s *Server) admit(ctx context.Context, conn *quic.Conn, hello wire.Hello) (*mirror, *ending) {
	m := &mirror{
		srv:      s,
		conn:     conn,
		nodeID:   hello.NodeID,
		address:  conn.RemoteAddr().String(),
		since:    time.Now(),
		reads:    newReads(),
		verifies: make(verifies, maxVerifies),
		acked:    make(chan struct{}, 1),
		asks:     hello.Asks,
	}
	if m.asks {
		hello.Features = nil
	}
	m.leases = newLeaseCursor(s.cfg.Replica, hello.Features)
	var err error
	m.identity, m.notAfter, err = s.cfg.Identify(conn.ConnectionState().TLS)
	peer := session.Peer{Identity: m.identity, Err: err}
	m.log = s.log.With("peer", m.identity.Name, "address", m.address)
	if err != nil {
		m.log = m.log.With("identity", err.Error()) // for this side only
	}

	// Before all else that is read of the replica: what follows is of this
	// generation, or the session ends when it looks again.
	m.gen = s.cfg.Replica.Generation()
	node := s.node()
	// Twice: what reads the history must not hold the lock, and what counts the
	// mirrors must.
	d := session.Decide(helloOf(hello), peer, node)
	if d.Code == heliograph.CodeNotReady && node.Applied > 0 && hello.LastAppliedLSN > node.Applied {
		d = s.decideAhead(ctx, hello, peer, node)
	}
	proven := d.Proven
	m.origin, m.forks = node.Lineage.Origin, d.Forks

	s.mu.Lock()
	if d.Accepted() {
		node.History = nil
		node.Mirrors, node.Snapshots = len(s.mirrors), s.snapshots
		node.FromAddress = s.fromAddressLocked(conn)
		d = session.Decide(helloOf(hello), peer, node)
	}
	if d.Accepted() {
		s.mirrors[m] = struct{}{}
		s.metrics.mirrors.Inc()
		if d.Snapshot {
			m.slot = true
			s.snapshots++
		}
	}
	// Status may ask for it from now on.
	m.progress = session.Resume(hello.LastAppliedLSN, s.cfg.WindowBytes)
	s.mu.Unlock()

	switch {
	case !d.Accepted():
		return m, &ending{code: d.Code, detail: d.Detail, origin: d.Origin}
	case hello.LastAppliedLSN == 0, hello.Asks:
	case proven:
		s.metrics.proven.Inc()
	default:
		s.metrics.unproven.Inc()
		m.log.Warn("mirror's history could not be compared", "rev", hello.LastAppliedLSN, "origin", hello.Origin)
	}
	if !d.Snapshot {
		return m, nil
	}
	snap, err := s.spool.take(ctx, s.life)
	if err != nil {
		s.remove(m)
		return m, s.spoolEnding(err)
	}
	m.mu.Lock()
	m.snapshot = snap
	m.progress = session.Bootstrap(snap.Rev(), hello.LastAppliedLSN, s.cfg.WindowBytes)
	m.mu.Unlock()
	return m, nil
}

func (s *Server) spoolEnding(err error) *ending {
	switch {
	case errors.Is(err, errPreparing):
		return end(heliograph.CodeOverloaded, "%v: try again in a few seconds", err)
	case s.life.Err() != nil:
		return end(heliograph.CodeShuttingDown, "the source is stopping")
	case errors.Is(err, context.Canceled):
		return end(heliograph.CodeTimeout, "the mirror left while its snapshot was prepared")
	case errors.Is(err, heliograph.ErrNotReady):
		return end(heliograph.CodeNotReady, "the source has received no snapshot itself yet")
	}
	s.log.Error("snapshot cannot be made", "err", err)
	return end(heliograph.CodeNotReady, "the source cannot make a snapshot")
}

// decideAhead decides about a mirror that is ahead of this node, which lags
// behind its origin, or was killed and has to regain its last moments. What the
// mirror has was there before its hello, so an origin that is asked after the
// hello and has less is another one. Nothing that was heard earlier can tell that.
func (s *Server) decideAhead(ctx context.Context, hello wire.Hello, peer session.Peer, node session.Node) session.Decision {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SnapshotWait)
	defer cancel()
	if head, err := s.cfg.ReadIndex(ctx); err == nil {
		node.Head, node.Fresh = head, true
	}
	return session.Decide(helloOf(hello), peer, node)
}

// node returns what the decision needs to know of this node.
func (s *Server) node() session.Node {
	up := s.cfg.Upstream()
	return session.Node{
		Cluster:        s.cfg.Cluster,
		Database:       s.cfg.Database,
		NodeID:         s.cfg.NodeID,
		Version:        wire.Version,
		Allow:          s.cfg.Allow,
		Lineage:        s.cfg.Replica.Lineage(),
		MaxForks:       wire.MaxAckForks,
		Applied:        s.cfg.Replica.Applied(),
		Floor:          s.cfg.Replica.Floor(),
		History:        s.cfg.Replica,
		Path:           up.Path,
		MaxPath:        wire.MaxPath,
		MaxMirrors:     s.cfg.MaxMirrors,
		MaxFromAddress: s.cfg.MaxPerAddress,
		MaxSnapshots:   s.cfg.MaxSnapshots,
	}
}

func helloOf(h wire.Hello) session.Hello {
	return session.Hello{
		Cluster:     h.SourceCluster,
		Database:    h.SourceDatabaseID,
		LastApplied: h.LastAppliedLSN,
		Version:     h.ProtocolVersion,
		NodeID:      h.NodeID,
		Origin:      h.Origin,
		Proof:       heliograph.Proof{Rev: h.LastAppliedLSN, Blocks: h.Digests, Tails: h.Tails},
		Asks:        h.Asks,
	}
}

// accepted is the ack of a mirror that may follow.
func (s *Server) accepted(m *mirror) wire.HelloAck {
	ack := wire.HelloAck{
		Accepted:        true,
		SourceClusterID: string(s.cfg.Cluster),
		SnapshotLSN:     wire.NoSnapshot,
		HeadLSN:         s.cfg.Replica.Applied(),
		CompactLSN:      s.cfg.Replica.Compacted(),
		Origin:          m.origin.String(),
		Forks:           m.forks,
		NodeID:          s.cfg.NodeID,
		Path:            s.path(s.cfg.Upstream()),
		HeartbeatMS:     s.cfg.Heartbeat.Milliseconds(),
		Features:        []string{wire.FeatureVerify},
	}
	if m.snapshot != nil {
		ack.SnapshotLSN = uint64(m.snapshot.Rev())
		ack.SnapshotBytesTotal = uint64(m.snapshot.Size())
	}
	return ack
}

// refuse answers a hello with a refusal and closes the connection. An identity
// that is not allowed learns nothing but that.
func (m *mirror) refuse(stream *quic.Stream, hello wire.Hello, e *ending) {
	cfg := &m.srv.cfg
	m.srv.metrics.refusals.WithLabelValues(e.code.String()).Inc()
	m.log.Warn("mirror refused", "code", e.code.String(), "err", e.detail, "role", string(m.identity.Role),
		"hello_cluster", hello.SourceCluster, // beside "cluster"
		"hello_database", hello.SourceDatabaseID, "database", string(cfg.Database),
		"hello_version", hello.ProtocolVersion, "version", wire.Version,
		"hello_rev", hello.LastAppliedLSN, "rev", cfg.Replica.Applied(), "floor", cfg.Replica.Floor(),
		"hello_origin", hello.Origin, "origin", cfg.Replica.Lineage().Origin.String(),
		"hello_node", hello.NodeID, "node", cfg.NodeID)
	ack := wire.HelloAck{ErrorCode: e.code, ErrorDetail: e.detail, SnapshotLSN: wire.NoSnapshot, Origin: e.origin}
	if e.code != heliograph.CodeNotAuthorized && e.code != heliograph.CodeObserverOnly {
		ack.SourceClusterID = string(cfg.Cluster)
	}
	closeConn(m.conn, stream, ack, e)
}
