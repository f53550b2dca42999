package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
	"github.com/heliograph/heliograph/store"
)

// Node is one open node: what lasts over its phases.
//
//	mirroring ─► promoting ─► promoted
//	    ▲            │
//	    └── failed ──┘
//
// Create it with [Open], run it once, close it.
type Node struct {
	cfg      Config
	dir      *dataDir
	addrs    Addrs // fixed by Open
	admin    []net.Listener
	registry *registries

	verifications *prometheus.CounterVec // by result
	resynced      prometheus.Counter

	mu        sync.Mutex
	mirroring *mirroring // nil once promoted
	promotion *promotion // asked for and not concluded; nil if there is none
	promoted  *promoted  // nil before

	peersMu    sync.Mutex
	peersTaken bool // the address for members is for a promoted etcd alone

	closeOnce sync.Once
	closeErr  error
}

// Open takes the data directory and the sockets and builds the node. Its errors
// say what to do. The caller runs the node and closes it.
func Open(cfg Config) (_ *Node, err error) {
	if err := cfg.resolve(); err != nil {
		return nil, err
	}
	if err := cfg.checkPeers(); err != nil {
		// Whether a promotion that has begun is one, only recovery tells.
		if _, begun, _ := promote.Read(cfg.DataDir); !begun {
			return nil, err
		}
	}
	n := &Node{cfg: cfg, registry: newRegistries()}
	n.verifications, n.resynced = newCounters(n.registry.lasting)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	n.registry.lasting.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if cfg.Credentials != nil {
		if err = n.registry.lasting.Register(cfg.Credentials); err != nil {
			return nil, err
		}
	}
	if cfg.ClientTLS != nil {
		if err = n.registry.lasting.Register(cfg.ClientTLS); err != nil {
			return nil, err
		}
	}
	if n.dir, err = openDataDir(cfg.DataDir, cfg.identity()); err != nil {
		return nil, err
	}
	done, rec, err := n.recoverPromotion()
	if err != nil {
		return nil, err
	}
	if err = n.listenAdmin(); err != nil {
		return nil, err
	}
	if done {
		err = n.openPromoted(rec)
	} else {
		n.mirroring, err = n.openMirroring()
	}
	if err != nil {
		return nil, err
	}
	n.registry.lasting.MustRegister(statusCollector{n})
	return n, nil
}

// recoverPromotion finishes or takes back what a crash has cut short. It audits the
// outcome of a promotion whose line was not written before the crash; one between
// the line and the note gives a second one.
func (n *Node) recoverPromotion() (promoted bool, rec promote.Record, err error) {
	begun, found, err := promote.Read(n.cfg.DataDir)
	if err != nil {
		return false, rec, err
	}
	if promoted, rec, err = promote.Recover(n.cfg.DataDir, n.cfg.Database, n.cfg.Log.With("part", "promote")); err != nil {
		return false, rec, err
	}
	switch {
	case !found || begun.Audited:
		return promoted, rec, nil
	case promoted:
		n.audit("promote", begun.By, "outcome", "promoted: finished after a restart", "rev", rec.Revision)
	default:
		n.audit("promote", begun.By, "outcome", "taken back after a restart: this node mirrors", "rev", begun.Revision)
	}
	n.noteAudit()
	return promoted, rec, nil
}

// noteAudit keeps the next start from writing the line of audit once more.
func (n *Node) noteAudit() {
	if err := promote.NoteAudit(n.cfg.DataDir); err != nil {
		n.cfg.Log.Error("the next start writes the line of audit once more: that it is written cannot be noted", "err", err)
	}
}

// Run serves and follows until ctx ends, and returns nil, or until a part fails
// that the node cannot do without. A diverged replica is not such a part: the
// node goes on and says so.
func (n *Node) Run(ctx context.Context) error {
	log := n.cfg.Log
	s := n.Status()[0]
	log.Info("node started", "cluster", n.cfg.Cluster, "database", n.cfg.Database, "role", n.cfg.role(),
		"node", n.dir.id.NodeID, "rev", s.AppliedRevision)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.live(gctx) })
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
	log.Info("node stopped", "rev", n.Status()[0].AppliedRevision)
	return err
}

// live goes through the phases until ctx ends.
func (n *Node) live(ctx context.Context) error {
	for {
		n.mu.Lock()
		m, p := n.mirroring, n.promoted
		n.mu.Unlock()
		if p != nil {
			return p.run(ctx)
		}
		asked, err := m.run(ctx)
		if asked == nil {
			return err
		}
		if err := n.change(ctx, m, asked); err != nil {
			return err
		}
	}
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
		if n.mirroring != nil {
			errs = append(errs, n.mirroring.close())
		}
		if n.promoted != nil {
			errs = append(errs, n.promoted.close())
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

// phase returns what the node is: one of the two is nil.
func (n *Node) phase() (*mirroring, *promoted) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mirroring, n.promoted
}

// errPromoted is what a promoted node answers to what only a mirror can do.
var errPromoted = &conflictError{errors.New("this node is promoted: it is an etcd of its own, and has no source any more; a new mirror takes a data directory of its own")}

// Status returns the status of each database; today that is one.
func (n *Node) Status() []heliograph.Status {
	n.mu.Lock()
	m, p, asked := n.mirroring, n.promoted, n.promotion
	n.mu.Unlock()
	if p != nil {
		return []heliograph.Status{p.status()}
	}
	s := m.status()
	if doing := asked.doing(); doing != "" {
		s.Status, s.Why = heliograph.Promoting, doing
	}
	return []heliograph.Status{s}
}

// ready returns why the node is not ready; nil if it follows, or is promoted and
// takes writes.
func (n *Node) ready() error {
	if _, p := n.phase(); p != nil {
		return p.serves()
	}
	s := n.Status()[0]
	if s.Status != heliograph.Following {
		return fmt.Errorf("%s/%s is %s: %s", s.Cluster, s.Name, s.Status, s.Why)
	}
	return nil
}

// HashKV returns etcd's HashKV of the replica at rev (0: the newest), which
// compares with any other at the same compaction revision. A promoted node's etcd
// answers that itself.
func (n *Node) HashKV(ctx context.Context, rev int64) (store.HashKV, error) {
	m, _ := n.phase()
	if m == nil {
		return store.HashKV{}, errPromoted
	}
	return m.store.HashKV(ctx, rev)
}

// Verify compares etcd's HashKV with this node's at one revision. It waits for a
// verification that is under way, or else for a new one. What could not be done is
// unknown. Run must be running.
func (n *Node) Verify(ctx context.Context) heliograph.Verification {
	m, _ := n.phase()
	if m == nil {
		return heliograph.Unverified(errPromoted.Error())
	}
	return m.verifier.ask(ctx, false)
}

// Resync drops what the replica holds and bootstraps anew from the upstream,
// whatever history that has. It returns when the replica is dropped; readers get
// errors until the new snapshot is there. What may be the only copy is not dropped
// unless it is forced: that is an *OnlyCopyError. Run must be running.
func (n *Node) Resync(ctx context.Context, opts ResyncOptions) error {
	m, _ := n.phase()
	if m == nil {
		return errPromoted
	}
	if !opts.Force {
		if err := m.onlyCopy(ctx); err != nil {
			return err
		}
	}
	return m.resync(ctx)
}

// Log returns the node's logger.
func (n *Node) Log() *slog.Logger { return n.cfg.Log }
