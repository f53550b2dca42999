package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
)

// etcdStartTimeout is how long the promoted etcd may take until it answers: it
// reads the whole database first.
const etcdStartTimeout = 10 * time.Minute

// promoted is what a node is after its promotion: an etcd, for good.
type promoted struct {
	node       *Node
	rec        promote.Record
	asked      *promotion // nil after a restart
	peerListen string     // URL: where the etcd listens for members

	// What Open has taken for the etcd, so that mistakes show then; nil after a
	// promotion, and once the etcd runs.
	held []net.Listener

	ready chan struct{} // closed when the etcd accepts writes for the first time
	ended chan struct{} // closed when run has returned

	mu        sync.Mutex
	etcd      *embed.Etcd // nil while it does not run
	why       error       // why it does not
	rev       int64       // when it ran last; the record's before
	compacted int64
}

func newPromoted(n *Node, rec promote.Record, asked *promotion) *promoted {
	return &promoted{
		node: n, rec: rec, asked: asked, rev: rec.Revision + rec.Bump,
		ready: make(chan struct{}), ended: make(chan struct{}),
	}
}

// openPromoted takes the sockets of a node that was promoted in an earlier life.
func (n *Node) openPromoted(rec promote.Record) error {
	if n.cfg.CredentialsErr != nil {
		n.cfg.Log.Warn("no certificate for other nodes: a promoted node does without", "err", n.cfg.CredentialsErr)
	}
	p := newPromoted(n, rec, nil)
	n.promoted = p
	clients, err := n.listenClients()
	switch {
	case err != nil:
		return err
	case clients == nil:
		return errors.New("this node is promoted, and --listen-clients is missing: where its etcd serves clients")
	}
	p.held = append(p.held, clients)
	peers, at, err := n.listenPeers(p.peerURL())
	if err != nil {
		return err
	}
	p.held, p.peerListen = append(p.held, peers), at
	return nil
}

// peerURL is where members reach the node: as it was started, or as it was promoted.
func (p *promoted) peerURL() string {
	switch {
	case p.node.cfg.PeerURL != "":
		return p.node.cfg.PeerURL
	case len(p.rec.PeerURLs) > 0:
		return p.rec.PeerURLs[0]
	}
	return promote.DefaultPeerURL
}

// close lets go of the sockets. It is called when run has returned, or was never
// called.
func (p *promoted) close() error {
	var errs []error
	for _, lis := range p.held {
		errs = append(errs, ignoreClosed(lis.Close()))
	}
	p.held = nil
	return errors.Join(errs...)
}

// run serves until ctx ends, and returns nil, or until the etcd fails.
func (p *promoted) run(ctx context.Context) error {
	defer close(p.ended)
	n := p.node
	err := p.close() // etcd opens them itself
	if err == nil {
		err = promote.Serve(ctx, p.serveConfig(), func(e *embed.Etcd) {
			p.enter(e)
			n.conclude(p.asked, p.rec, nil)
		})
	}
	p.leave(err)
	if err != nil {
		err = fmt.Errorf("%s, and its etcd does not run: %w; nothing is lost: mend that and start the node again", p.sentence(), err)
		n.conclude(p.asked, p.rec, err)
		return err
	}
	n.conclude(p.asked, p.rec, fmt.Errorf("%s, and the node was stopped before its etcd ran: start it again", p.sentence()))
	return nil
}

func (p *promoted) serveConfig() promote.ServeConfig {
	n := p.node
	cfg := promote.ServeConfig{
		DataDir: promote.EtcdDir(n.cfg.DataDir, p.rec.Database), Name: p.rec.Name,
		ClientURLs: []string{n.clientScheme() + n.addrs.Clients}, AdvertiseURLs: n.advertised(),
		PeerURLs: []string{p.peerListen}, AdvertisePeer: n.cfg.PeerURL, ClientTLS: n.clientTLS(),
		QuotaBytes: n.cfg.PromotedQuota, KeepHistory: n.cfg.PromotedHistory,
		StartTimeout: etcdStartTimeout, Log: n.cfg.Log.With("part", "etcd"),
	}
	if strings.HasPrefix(p.peerListen, "https:") {
		cfg.PeerTLS = n.clientTLS()
	}
	return cfg
}

// enter begins to serve.
func (p *promoted) enter(e *embed.Etcd) {
	p.mu.Lock()
	p.etcd = e
	p.mu.Unlock()
	close(p.ready)
	p.node.cfg.Log.Info("promoted etcd serves", "cluster", p.rec.Cluster, "rev", e.Server.KV().Rev(), "etcd_id", p.rec.EtcdID.String())
}

// leave ends it; why is nil if it was told to.
func (p *promoted) leave(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.etcd != nil {
		p.rev, p.compacted = p.etcd.Server.KV().Rev(), p.etcd.Server.KV().FirstRev()
	}
	p.etcd, p.why = nil, why
}

// refusals are what opts ask for that the promoted etcd does not have.
func (p *promoted) refusals(opts PromoteOptions) []Refusal {
	list := []Refusal{}
	if bump := opts.BumpRevision; bump != 0 && bump != p.rec.Bump {
		list = append(list, Refusal{Reason: fmt.Sprintf("it was promoted with --bump-revision %d, and not %d: revisions are left out before the first write, "+
			"or by 'etcdutl snapshot restore --bump-revision N --mark-compacted' of a snapshot of its etcd", p.rec.Bump, bump)})
	}
	if peer := strings.TrimSuffix(opts.PeerURL, "/"); peer != "" && !slices.Contains(p.rec.PeerURLs, peer) {
		list = append(list, Refusal{Reason: fmt.Sprintf("it was promoted with --peer-url %s, and not %s: "+
			"tell members of it with 'etcdctl member update', and start the node with it", strings.Join(p.rec.PeerURLs, ","), peer)})
	}
	return list
}

// again answers who asks for what has happened already, when writes are accepted.
func (p *promoted) again(ctx context.Context, opts PromoteOptions) (promote.Record, error) {
	if list := p.refusals(opts); len(list) > 0 {
		err := &NotPromotableError{Refusals: list, Before: true}
		p.node.audit("promote", opts.By, "outcome", "refused", "rev", p.rec.Revision, "err", err)
		return p.rec, err
	}
	err := fmt.Errorf("%s, and its etcd is not ready: helio status says why", p.sentence())
	select {
	case <-p.ready:
		err = nil
	case <-p.ended:
	case <-ctx.Done():
	}
	if err == nil {
		p.node.audit("promote", opts.By, "outcome", "promoted before", "rev", p.rec.Revision)
	} else {
		p.node.audit("promote", opts.By, "outcome", "promoted before", "rev", p.rec.Revision, "err", err)
	}
	return p.rec, err
}

// sentence says what the node is.
func (p *promoted) sentence() string {
	bump := ""
	if p.rec.Bump > 0 {
		bump = fmt.Sprintf(", bumped by %d", p.rec.Bump)
	}
	return fmt.Sprintf("promoted at revision %d of %s%s, %s, by %s", p.rec.Revision, p.rec.Origin, bump,
		p.rec.At.Format(time.RFC3339), p.rec.By)
}

// serves returns why the etcd does not take writes; nil if it does.
func (p *promoted) serves() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.etcd == nil && p.why != nil:
		return fmt.Errorf("its etcd does not run: %w", p.why)
	case p.etcd == nil:
		return errors.New("its etcd is starting, or being stopped")
	case p.etcd.Server.Lead() == 0:
		return errors.New("its etcd has no leader: a majority of the members has to be reachable")
	}
	if alarms := p.etcd.Server.Alarms(); len(alarms) > 0 {
		return alarmed(alarms)
	}
	return nil
}

// alarmed says which alarms keep an etcd from taking writes, and the way out.
func alarmed(alarms []*etcdserverpb.AlarmMember) error {
	var list []string
	for _, a := range alarms {
		list = append(list, fmt.Sprintf("%s of member %x", a.Alarm, a.MemberID))
	}
	slices.Sort(list)
	return fmt.Errorf("its etcd takes no writes, alarm %s: after NOSPACE compact and defragment it, after CORRUPT replace the member, "+
		"then etcdctl alarm disarm", strings.Join(list, ", "))
}

func (p *promoted) status() heliograph.Status {
	n := p.node
	s := heliograph.Status{
		Name: p.rec.Database, Cluster: n.cfg.Cluster, Role: n.cfg.role(), Node: n.dir.id.NodeID,
		Origin: heliograph.Origin{Cluster: p.rec.Cluster, Database: p.rec.Database, EtcdID: uint64(p.rec.EtcdID)}.String(),
		Mode:   n.cfg.Mode, Reads: string(ReadsAnyone), Status: heliograph.Promoted, Why: p.sentence(),
		ETAMS: -1, Downstreams: []heliograph.Downstream{},
	}
	if n.clientTLS().ClientCertAuth {
		s.Reads = string(ReadsClientCertificate)
	}
	if err := p.serves(); err != nil {
		s.Why += "; " + err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.etcd != nil {
		p.rev, p.compacted = p.etcd.Server.KV().Rev(), p.etcd.Server.KV().FirstRev()
	}
	s.AppliedRevision, s.CompactRevision = p.rev, max(0, p.compacted)
	s.DurableRevision, s.HeadRevision = s.AppliedRevision, s.AppliedRevision
	return s
}

// plan says that there is nothing to plan, and what opts ask for in vain.
func (p *promoted) plan(opts PromoteOptions) Plan {
	s := p.status()
	rec := p.rec
	return Plan{
		Promoted: &rec, Cluster: rec.Cluster, Database: rec.Database, Status: s.Status, Why: s.Why, Origin: rec.Origin,
		AppliedRevision: rec.Revision, LastKnownRevision: rec.LastKnownRevision, MissingRevisions: rec.MissingRevisions,
		LastContactMS: -1, StalenessMS: -1, VerifiedAgeMS: -1, EtcdVersion: promote.EtcdVersion(), Leases: rec.Leases, LeasesUnknownTTL: rec.LeasesDefaulted,
		ClientURLs: p.node.advertised(), ClientCertificates: p.node.clientTLS().ClientCertAuth,
		PeerURL: p.peerURL(), Refusals: p.refusals(opts),
	}
}
