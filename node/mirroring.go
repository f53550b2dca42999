package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/readapi"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/store"
	"github.com/heliograph/heliograph/upstream/etcd"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

// upstream is what fills the store: an etcd cluster or another node.
type upstream interface {
	// Run follows until ctx ends, or returns a *heliograph.DivergedError.
	Run(ctx context.Context) error
	// ReadIndex asks for the origin's newest revision.
	ReadIndex(ctx context.Context) (int64, error)
	// Answers returns nil if the upstream is there just now, and has a history.
	Answers(ctx context.Context) error
}

// mirroring is what a node is until it is promoted: a store, what fills it, and
// what serves from it. A promotion that fails begins another one.
type mirroring struct {
	node *Node
	cfg  *Config // the node's

	store    *store.Store
	tracker  *Tracker
	upstream upstream
	path     func() []string // node ids from the origin down to the upstream
	version  func() string   // etcd's version, as far as it is known
	source   *source.Server  // nil without Listen
	readapi  *readapi.Server // nil without ListenClients
	metrics  *prometheus.Registry
	verifier *verifier

	unequal chan *heliograph.DivergedError // capacity 1: what a verification has found
	resyncs chan resync
	dropped heliograph.Lineage // of the last replica that was dropped without being asked; of follow alone
	asks    chan *promotion    // who sends waits for ended too
	ended   chan struct{}      // closed when run has returned

	mirrors net.PacketConn // for source
	clients net.Listener   // for readapi

	closeOnce sync.Once
	closeErr  error
}

// openMirroring takes sockets and store and builds what runs on them.
func (n *Node) openMirroring() (_ *mirroring, err error) {
	if err := n.cfg.checkPeers(); err != nil {
		return nil, err
	}
	m := &mirroring{
		node: n, cfg: &n.cfg, metrics: prometheus.NewRegistry(),
		unequal: make(chan *heliograph.DivergedError, 1), resyncs: make(chan resync),
		asks: make(chan *promotion), ended: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	if m.mirrors, err = n.listenMirrors(); err != nil {
		return nil, err
	}
	if m.clients, err = n.listenClients(); err != nil {
		return nil, err
	}
	m.store, err = store.Open(store.Config{
		Dir: n.cfg.DataDir, Database: n.cfg.Database, History: n.cfg.History,
		Log: n.cfg.Log.With("part", "store"), Metrics: m.metrics,
	})
	if err != nil {
		return nil, err
	}
	m.tracker = NewTracker(m.store.Applied(), n.cfg.Etcd != nil)
	if d := m.store.Unequal(); d != nil {
		m.tracker.Diverged(m.ofMove(d)) // before anybody can ask for a promotion
	}
	if err = m.buildUpstream(); err != nil {
		return nil, err
	}
	if err = m.buildSource(); err != nil {
		return nil, err
	}
	if err = m.buildReadAPI(); err != nil {
		return nil, err
	}
	n.registry.enter(m.metrics)
	return m, nil
}

func (m *mirroring) buildUpstream() error {
	log := m.cfg.Log.With("part", "upstream")
	if m.cfg.Etcd != nil {
		up, err := etcd.New(etcd.Config{
			Endpoints: m.cfg.Etcd.Endpoints, TLS: m.cfg.Etcd.TLS,
			Username: m.cfg.Etcd.Username, Password: m.cfg.Etcd.Password,
			Cluster: m.cfg.Cluster, Database: m.cfg.Database,
			Replica: m.store, Reporter: m.tracker, Log: log, Metrics: m.metrics,
		})
		if err != nil {
			return err
		}
		m.upstream, m.version = up, up.Version
		m.verifier = newVerifier(m, func(ctx context.Context) (heliograph.Verification, bool) { return m.verifyEtcd(ctx, up) })
		m.path = func() []string { return nil }
		return nil
	}
	up, err := link.New(link.Config{
		Address: *m.cfg.From, NodeID: m.node.dir.id.NodeID,
		TLS: func() *tls.Config {
			return m.cfg.Credentials.ClientTLS(wire.ALPN, m.cfg.From.Cluster)
		},
		Replica: m.store, Reporter: m.tracker, Joined: m.joined, Left: m.left, Mode: m.cfg.Mode, Log: log, Metrics: m.metrics,
	})
	if err != nil {
		return err
	}
	m.upstream, m.path = up, up.Path
	m.verifier = newVerifier(m, func(ctx context.Context) (heliograph.Verification, bool) { return m.verifyChain(ctx, up) })
	return nil
}

func (m *mirroring) buildSource() (err error) {
	if m.mirrors == nil {
		return nil
	}
	m.source, err = source.New(source.Config{
		Cluster: m.cfg.Cluster, Database: m.cfg.Database, NodeID: m.node.dir.id.NodeID,
		Replica: m.store, Upstream: m.upstreamView, ReadIndex: m.readIndex,
		Verify: func(ctx context.Context) heliograph.Verification { return m.verifier.ask(ctx, true) },
		TLS:    m.cfg.Credentials.ServerTLS(wire.ALPN), Identify: m.cfg.Credentials.PeerIdentity,
		Allow: m.cfg.Allow, Log: m.cfg.Log.With("part", "source"), Metrics: m.metrics,
	})
	return err
}

func (m *mirroring) buildReadAPI() (err error) {
	if m.clients == nil {
		return nil
	}
	var conf *tls.Config
	if m.cfg.ClientTLS != nil {
		conf = m.cfg.ClientTLS.TLS()
	}
	m.readapi, err = readapi.New(readapi.Config{
		Replica: readReplica{m.store}, ReadIndex: m.readIndex,
		UpstreamAlive: m.upstreamAlive, Staleness: m.staleness, Source: m.sourcePhrase, Version: m.version,
		AuthStatus: m.authStatus, Admit: m.admit, TLS: conf,
		MemberName: string(m.cfg.Cluster) + "-" + m.node.dir.id.NodeID, AdvertiseClients: m.node.advertised(),
		Log: m.cfg.Log.With("part", "clients"), Metrics: m.metrics,
	})
	return err
}

// run mirrors until ctx ends, a part fails, or a promotion is asked for, which it
// returns. Everything that it started has stopped when it returns.
func (m *mirroring) run(ctx context.Context) (asked *promotion, err error) {
	defer close(m.ended)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case asked = <-m.asks:
			asked.step("what mirrors is being stopped")
			return errPromotionAsked
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return part(gctx, "upstream", m.follow(gctx)) })
	g.Go(func() error { m.verifier.run(gctx); return nil })
	if m.source != nil {
		g.Go(func() error { return part(gctx, "source", m.source.Serve(gctx, m.mirrors)) })
	}
	if m.readapi != nil {
		g.Go(func() error { return part(gctx, "clients", m.readapi.Serve(gctx, m.clients)) })
		g.Go(func() error { return m.sayReads(gctx) })
	}
	err = g.Wait()
	return asked, err
}

// close closes store and sockets. It is called when run has returned, or was never
// called; a second call does nothing.
func (m *mirroring) close() error {
	m.closeOnce.Do(func() {
		m.node.registry.leave(m.metrics)
		var errs []error
		if m.store != nil {
			errs = append(errs, m.store.Close())
		}
		if m.mirrors != nil {
			errs = append(errs, ignoreClosed(m.mirrors.Close()))
		}
		if m.clients != nil {
			errs = append(errs, ignoreClosed(m.clients.Close()))
		}
		m.closeErr = errors.Join(errs...)
	})
	return m.closeErr
}

// status is also asked for when run has returned, and the store is closed.
func (m *mirroring) status() heliograph.Status {
	v := m.tracker.View()
	s := heliograph.Status{
		Name: m.cfg.Database, Cluster: m.cfg.Cluster, Role: m.cfg.role(), Node: m.node.dir.id.NodeID,
		Upstream: m.upstreamName(), Mode: m.cfg.Mode, Reads: m.readsNow(),
		Status: v.State, Why: v.Why, BytesDone: v.Done, BytesTotal: v.Total,
		AppliedRevision: m.store.Applied(), DurableRevision: m.store.Durable(), CompactRevision: m.store.Compacted(),
		LagMS: v.Lag.Milliseconds(), StalenessMS: millis(v.Staleness), ETAMS: millis(v.ETA),
		Downstreams: []heliograph.Downstream{},
	}
	if o := m.store.Origin(); !o.IsZero() {
		s.Origin = o.String()
	}
	last, good := m.verifier.results()
	s.LastVerifyResult, s.LastVerifyWhy, s.LastVerifyAt = last.Result, last.Why, last.At
	s.LastVerifiedRevision, s.LastVerifiedAt = good.Revision, good.At
	s.HeadRevision = max(v.Head, s.AppliedRevision)
	s.BehindRevisions = s.HeadRevision - s.AppliedRevision
	if m.source != nil {
		s.Downstreams = append(s.Downstreams, m.source.Downstreams()...)
	}
	return s
}

// millis keeps the -1 of what is not known.
func millis(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}

func (m *mirroring) upstreamName() string {
	if m.cfg.Etcd != nil {
		return strings.Join(m.cfg.Etcd.Endpoints, ",")
	}
	return m.cfg.From.String()
}

// upstreamView is what this node's source tells its mirrors of the way up.
func (m *mirroring) upstreamView() source.Upstream {
	v := m.tracker.View()
	up := source.Upstream{Head: v.Head, Path: m.path(), Staleness: v.Staleness}
	if v.State != heliograph.Following && v.State != heliograph.CatchingUp {
		up.Why = v.Why
	}
	return up
}

func (m *mirroring) upstreamAlive() error {
	if v := m.tracker.View(); !v.Fresh {
		return fmt.Errorf("%s: %s", v.State, v.Why)
	}
	return nil
}

func (m *mirroring) staleness() (time.Duration, bool) {
	v := m.tracker.View()
	return v.Staleness, v.Staleness >= 0
}

// sourcePhrase names the place that accepts writes.
func (m *mirroring) sourcePhrase() string {
	if m.cfg.Etcd != nil {
		return fmt.Sprintf("the etcd of cluster %s (%s)", m.cfg.Cluster, strings.Join(m.cfg.Etcd.Endpoints, ","))
	}
	cluster := m.cfg.From.Cluster
	if o := m.store.Origin(); !o.IsZero() {
		cluster = o.Cluster
	}
	return fmt.Sprintf("cluster %s (mirrored from %s)", cluster, strings.Join(m.cfg.From.Hosts, ","))
}
