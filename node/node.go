package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
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
}

// Node is one open node. Create it with [Open], run it once, close it.
type Node struct {
	cfg      Config
	dir      *dataDir
	store    *store.Store
	tracker  *Tracker
	upstream upstream
	path     func() []string // node ids from the origin down to the upstream
	version  func() string   // etcd's version, as far as it is known
	source   *source.Server  // nil without Listen
	readapi  *readapi.Server // nil without ListenClients
	registry *prometheus.Registry
	verifier *verifier

	verifications *prometheus.CounterVec // by result
	resynced      prometheus.Counter
	unequal       chan *heliograph.DivergedError // capacity 1: what a verification has found
	resyncs       chan resync

	mirrors net.PacketConn // for source
	clients net.Listener   // for readapi
	admin   []net.Listener

	closeOnce sync.Once
	closeErr  error
}

// Open takes the data directory and the sockets and builds the node. Its errors
// say what to do. The caller runs the node and closes it.
func Open(cfg Config) (_ *Node, err error) {
	if err := cfg.resolve(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, registry: prometheus.NewRegistry(), unequal: make(chan *heliograph.DivergedError, 1), resyncs: make(chan resync)}
	n.verifications, n.resynced = newCounters(n.registry)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if cfg.Credentials != nil {
		if err = n.registry.Register(cfg.Credentials); err != nil {
			return nil, err
		}
	}
	if cfg.ClientTLS != nil {
		if err = n.registry.Register(cfg.ClientTLS); err != nil {
			return nil, err
		}
	}
	if n.dir, err = openDataDir(cfg.DataDir, cfg.identity()); err != nil {
		return nil, err
	}
	if err = n.listen(); err != nil {
		return nil, err
	}
	n.store, err = store.Open(store.Config{
		Dir: cfg.DataDir, Database: cfg.Database, History: cfg.History,
		Log: cfg.Log.With("part", "store"), Metrics: n.registry,
	})
	if err != nil {
		return nil, err
	}
	n.tracker = NewTracker(n.store.Applied(), cfg.Etcd != nil)
	if err = n.buildUpstream(); err != nil {
		return nil, err
	}
	if err = n.buildSource(); err != nil {
		return nil, err
	}
	if err = n.buildReadAPI(); err != nil {
		return nil, err
	}
	n.registry.MustRegister(statusCollector{n})
	return n, nil
}

func (n *Node) buildUpstream() error {
	log := n.cfg.Log.With("part", "upstream")
	if n.cfg.Etcd != nil {
		up, err := etcd.New(etcd.Config{
			Endpoints: n.cfg.Etcd.Endpoints, TLS: n.cfg.Etcd.TLS,
			Username: n.cfg.Etcd.Username, Password: n.cfg.Etcd.Password,
			Cluster: n.cfg.Cluster, Database: n.cfg.Database,
			Replica: n.store, Reporter: n.tracker, Log: log, Metrics: n.registry,
		})
		if err != nil {
			return err
		}
		n.upstream, n.version = up, up.Version
		n.verifier = newVerifier(n, func(ctx context.Context) (heliograph.Verification, bool) { return n.verifyEtcd(ctx, up) })
		n.path = func() []string { return nil }
		return nil
	}
	up, err := link.New(link.Config{
		Address: *n.cfg.From, NodeID: n.dir.id.NodeID,
		TLS: func() *tls.Config {
			return n.cfg.Credentials.ClientTLS(wire.ALPN, n.cfg.From.Cluster)
		},
		Replica: n.store, Reporter: n.tracker, Mode: n.cfg.Mode, Log: log, Metrics: n.registry,
	})
	if err != nil {
		return err
	}
	n.upstream, n.path = up, up.Path
	n.verifier = newVerifier(n, func(ctx context.Context) (heliograph.Verification, bool) { return n.verifyChain(ctx, up) })
	return nil
}

func (n *Node) buildSource() (err error) {
	if n.cfg.Listen == "" {
		return nil
	}
	n.source, err = source.New(source.Config{
		Cluster: n.cfg.Cluster, Database: n.cfg.Database, NodeID: n.dir.id.NodeID,
		Replica: n.store, Upstream: n.upstreamView, ReadIndex: n.upstream.ReadIndex,
		Verify: func(ctx context.Context) heliograph.Verification { return n.verifier.ask(ctx, true) },
		TLS:    n.cfg.Credentials.ServerTLS(wire.ALPN), Identify: n.cfg.Credentials.PeerIdentity,
		Allow: n.cfg.Allow, Log: n.cfg.Log.With("part", "source"), Metrics: n.registry,
	})
	return err
}

func (n *Node) buildReadAPI() (err error) {
	if n.cfg.ListenClients == "" {
		return nil
	}
	advertise := n.cfg.AdvertiseClients
	if len(advertise) == 0 {
		scheme := "http://"
		if n.cfg.ClientTLS != nil {
			scheme = "https://"
		}
		advertise = []string{scheme + n.clients.Addr().String()}
	}
	var conf *tls.Config
	if n.cfg.ClientTLS != nil {
		conf = n.cfg.ClientTLS.TLS()
	}
	n.readapi, err = readapi.New(readapi.Config{
		Replica: readReplica{n.store}, ReadIndex: n.upstream.ReadIndex,
		UpstreamAlive: n.upstreamAlive, Staleness: n.staleness, Source: n.sourcePhrase, Version: n.version,
		AuthStatus: n.authStatus, Admit: n.admit, TLS: conf,
		MemberName: string(n.cfg.Cluster) + "-" + n.dir.id.NodeID, AdvertiseClients: advertise,
		Log: n.cfg.Log.With("part", "clients"), Metrics: n.registry,
	})
	return err
}

// listen opens the sockets. A port in use is the commonest mistake of all.
func (n *Node) listen() (err error) {
	if n.cfg.Listen != "" {
		if n.mirrors, err = net.ListenPacket("udp", n.cfg.Listen); err != nil {
			return listenError("--listen", n.cfg.Listen, err)
		}
	}
	if n.cfg.ListenClients != "" {
		if n.clients, err = net.Listen("tcp", n.cfg.ListenClients); err != nil {
			return listenError("--listen-clients", n.cfg.ListenClients, err)
		}
	}
	if n.cfg.ListenAdmin != "" {
		lis, err := net.Listen("tcp", n.cfg.ListenAdmin)
		if err != nil {
			return listenError("--listen-admin", n.cfg.ListenAdmin, err)
		}
		n.admin = append(n.admin, lis)
	}
	lis, err := listenUnix(filepath.Join(n.cfg.DataDir, socketFile))
	if err != nil {
		return err
	}
	n.admin = append(n.admin, lis)
	return nil
}

// listenUnix listens at path, which only this user may connect to. The caller
// holds the data directory's lock, so a socket that is there is a dead one's.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	lis, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("admin socket %s: the path is longer than a unix socket's may be (107 bytes): choose a shorter --data-dir", path)
	}
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), lis.Close())
	}
	return lis, nil
}

func listenError(flag, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s %s: the port is in use: stop what listens there, or choose another port", flag, addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s %s: this machine has no such address: use one of its own, or 0.0.0.0 for all", flag, addr)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s %s: no permission: choose a port above 1023", flag, addr)
	}
	if _, unknown := errors.AsType[*net.DNSError](err); unknown {
		return fmt.Errorf("%s %s: this host name is not known: use an address of this machine, or 0.0.0.0 for all", flag, addr)
	}
	return fmt.Errorf("%s %s: %w", flag, addr, err)
}

// Run serves and follows until ctx ends, and returns nil, or until a part fails
// that the node cannot do without. A diverged replica is not such a part: the
// node goes on and says so.
func (n *Node) Run(ctx context.Context) error {
	log := n.cfg.Log
	log.Info("node started", "cluster", n.cfg.Cluster, "database", n.cfg.Database, "role", n.cfg.role(),
		"node", n.dir.id.NodeID, "rev", n.store.Applied())
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return part(gctx, "upstream", n.follow(gctx)) })
	g.Go(func() error { n.verifier.run(gctx); return nil })
	if n.source != nil {
		g.Go(func() error { return part(gctx, "source", n.source.Serve(gctx, n.mirrors)) })
	}
	if n.readapi != nil {
		g.Go(func() error { return part(gctx, "clients", n.readapi.Serve(gctx, n.clients)) })
		g.Go(func() error { return n.sayReads(gctx) })
	}
	if n.cfg.ClientTLS != nil {
		g.Go(func() error { return part(gctx, "certificates for clients", n.cfg.ClientTLS.Run(gctx)) })
	}
	if n.cfg.Credentials != nil {
		g.Go(func() error { return part(gctx, "certificates", n.cfg.Credentials.Run(gctx)) })
	}
	for _, lis := range n.admin {
		g.Go(func() error { return part(gctx, "admin", n.serveAdmin(gctx, lis)) })
	}
	err := g.Wait()
	if ctx.Err() != nil {
		err = nil // told to stop
	}
	log.Info("node stopped", "rev", n.store.Applied())
	return err
}

// part says which part of the node an error is of. What a part returns because
// it was told to stop is no error.
func part(ctx context.Context, name string, err error) error {
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Close closes what Open opened. It is called after Run has returned; a second
// call does nothing.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		var errs []error
		if n.store != nil {
			errs = append(errs, n.store.Close())
		}
		if n.mirrors != nil {
			errs = append(errs, ignoreClosed(n.mirrors.Close()))
		}
		if n.clients != nil {
			errs = append(errs, ignoreClosed(n.clients.Close()))
		}
		for _, lis := range n.admin {
			errs = append(errs, ignoreClosed(lis.Close()))
		}
		if n.dir != nil {
			errs = append(errs, n.dir.close())
		}
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Addrs are the addresses that a node listens on; empty where it does not.
type Addrs struct {
	Mirrors, Clients, Admin string // host:port
	Socket                  string // path of the admin socket
}

// Addrs returns the node's addresses, with the ports that were chosen for :0.
func (n *Node) Addrs() Addrs {
	a := Addrs{Socket: filepath.Join(n.cfg.DataDir, socketFile)}
	if n.mirrors != nil {
		a.Mirrors = n.mirrors.LocalAddr().String()
	}
	if n.clients != nil {
		a.Clients = n.clients.Addr().String()
	}
	for _, lis := range n.admin {
		if lis.Addr().Network() == "tcp" {
			a.Admin = lis.Addr().String()
		}
	}
	return a
}

// HashKV returns etcd's HashKV of the replica at rev (0: the newest), which
// compares with any other at the same compaction revision.
func (n *Node) HashKV(ctx context.Context, rev int64) (store.HashKV, error) {
	return n.store.HashKV(ctx, rev)
}

// Status returns the status of each database; today that is one.
func (n *Node) Status() []heliograph.Status {
	v := n.tracker.View()
	s := heliograph.Status{
		Name: n.cfg.Database, Cluster: n.cfg.Cluster, Role: n.cfg.role(), Node: n.dir.id.NodeID,
		Upstream: n.upstreamName(), Mode: n.cfg.Mode, Reads: n.readsNow(),
		Status: v.State, Why: v.Why, BytesDone: v.Done, BytesTotal: v.Total,
		AppliedRevision: n.store.Applied(), DurableRevision: n.store.Durable(), CompactRevision: n.store.Compacted(),
		LagMS: v.Lag.Milliseconds(), StalenessMS: millis(v.Staleness), ETAMS: millis(v.ETA),
		Downstreams: []heliograph.Downstream{},
	}
	if o := n.store.Origin(); !o.IsZero() {
		s.Origin = o.String()
	}
	last, good := n.verifier.results()
	s.LastVerifyResult, s.LastVerifyWhy, s.LastVerifyAt = last.Result, last.Why, last.At
	s.LastVerifiedRevision, s.LastVerifiedAt = good.Revision, good.At
	s.HeadRevision = max(v.Head, s.AppliedRevision)
	s.BehindRevisions = s.HeadRevision - s.AppliedRevision
	if n.source != nil {
		s.Downstreams = append(s.Downstreams, n.source.Downstreams()...)
	}
	return []heliograph.Status{s}
}

// millis keeps the -1 of what is not known.
func millis(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}

func (n *Node) upstreamName() string {
	if n.cfg.Etcd != nil {
		return strings.Join(n.cfg.Etcd.Endpoints, ",")
	}
	return n.cfg.From.String()
}

// upstreamView is what this node's source tells its mirrors of the way up.
func (n *Node) upstreamView() source.Upstream {
	v := n.tracker.View()
	up := source.Upstream{Head: v.Head, Path: n.path(), Staleness: v.Staleness}
	if v.State != heliograph.Following && v.State != heliograph.CatchingUp {
		up.Why = v.Why
	}
	return up
}

func (n *Node) upstreamAlive() error {
	if v := n.tracker.View(); !v.Fresh {
		return fmt.Errorf("%s: %s", v.State, v.Why)
	}
	return nil
}

func (n *Node) staleness() (time.Duration, bool) {
	v := n.tracker.View()
	return v.Staleness, v.Staleness >= 0
}

// sourcePhrase names the place that accepts writes.
func (n *Node) sourcePhrase() string {
	if n.cfg.Etcd != nil {
		return fmt.Sprintf("the etcd of cluster %s (%s)", n.cfg.Cluster, strings.Join(n.cfg.Etcd.Endpoints, ","))
	}
	cluster := n.cfg.From.Cluster
	if o := n.store.Origin(); !o.IsZero() {
		cluster = o.Cluster
	}
	return fmt.Sprintf("cluster %s (mirrored from %s)", cluster, strings.Join(n.cfg.From.Hosts, ","))
}

// Log returns the node's logger.
func (n *Node) Log() *slog.Logger { return n.cfg.Log }
