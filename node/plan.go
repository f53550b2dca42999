package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
	"github.com/heliograph/heliograph/store"
)

// SuggestedBump is how many revisions to leave out where a tail may be lost: more
// than an etcd at 15,000 writes per second makes in 18 hours, and nothing beside
// what a revision can be.
const SuggestedBump = 1_000_000_000

// What a promotion takes by its size: the file is read twice, and etcd reads it
// once more at its start. Slower than a disk of these days.
const (
	planBase        = time.Second // until one member has elected itself
	planBytesPerSec = 100 << 20
)

// PromoteOptions say how to promote.
type PromoteOptions struct {
	Force        bool   `json:"force"`         // also against refusals that can be forced
	BumpRevision int64  `json:"bump_revision"` // revisions to leave out after the last one
	PeerURL      string `json:"peer_url"`      // where members will reach the etcd; empty: see Plan.PeerURL

	By string `json:"-"` // who asks, for the record
}

// Plan says what a promotion would do now, and whether it may: what GET
// /v1/promotion answers with. Durations are milliseconds.
type Plan struct {
	Promoted *promote.Record `json:"promoted,omitempty"` // set if it has happened

	Cluster  heliograph.ClusterID  `json:"cluster"` // of the node, and the new etcd's name
	Role     heliograph.Role       `json:"role"`    // of the node; a source is made the etcd that it stands beside
	Database heliograph.DatabaseID `json:"database"`
	Status   heliograph.State      `json:"status"`
	Why      string                `json:"why"`
	Origin   string                `json:"origin"` // the etcd that is mirrored

	AppliedRevision   int64 `json:"applied_revision"`    // the last one that the new cluster will have
	LastKnownRevision int64 `json:"last_known_revision"` // newest of the origin that was heard of; 0: none since the node's start
	MissingRevisions  int64 `json:"missing_revisions"`   // of those that are known; -1: unknown
	OriginAnswers     bool  `json:"origin_answers"`      // the etcd that is mirrored was asked just now
	OriginAsked       bool  `json:"origin_asked"`        // or nothing answered of all that could have asked it; false: it may live
	LastContactMS     int64 `json:"last_contact_ms"`     // since the upstream was heard from; -1: never
	StalenessMS       int64 `json:"staleness_ms"`        // everything that the origin had so long ago is here; -1: unknown

	OriginWhy string `json:"origin_why"` // it does not answer, or could not be asked; empty if it answers

	VerifyResult     heliograph.VerifyResult `json:"verify_result"` // of the last verification; empty: there was none
	VerifyWhy        string                  `json:"verify_why"`
	VerifiedRevision int64                   `json:"verified_revision"` // of the last proof of equality; 0: none
	VerifiedAgeMS    int64                   `json:"verified_age_ms"`   // of that proof; -1: none

	Leases           int  `json:"leases"`             // which start again with their full TTL
	LeasesUnknownTTL int  `json:"leases_unknown_ttl"` // of these, those that get promote.DefaultLeaseTTL
	AccessControl    bool `json:"access_control"`     // clients will have to log in as at the origin
	// UsersOutdated is why the users and roles that the new etcd will have, access
	// control on or off among them, cannot be taken for the origin's; empty: they can.
	UsersOutdated string `json:"users_outdated"`

	EtcdVersion   string `json:"etcd_version"` // of the new etcd
	DatabaseBytes int64  `json:"database_bytes"`
	EstimateMS    int64  `json:"estimate_ms"` // until writes are accepted; 0 if there is nothing to promote
	EstimateFrom  string `json:"estimate_from"`

	ClientURLs         []string `json:"client_urls"`
	ClientCertificates bool     `json:"client_certificates"` // etcd will demand one of --client-ca from every client
	PeerURL            string   `json:"peer_url"`            // where members will reach it
	PeerListen         string   `json:"peer_listen"`         // where it will listen for them
	PeerWarning        string   `json:"peer_warning"`        // why they may not reach it; empty: nothing is known against it

	Bump     BumpAdvice `json:"bump"`     // zero if there is nothing to promote
	Refusals []Refusal  `json:"refusals"` // empty: it may be promoted
}

// Refusal is why a node may not be promoted.
type Refusal struct {
	Reason   string `json:"reason"`
	Forcible bool   `json:"forcible"`
}

// BumpAdvice says whether to leave out revisions.
type BumpAdvice struct {
	Needed   bool   `json:"needed"`   // a tail may be lost that somebody has seen
	Revision int64  `json:"revision"` // the number to use if so
	Why      string `json:"why"`
	Cost     string `json:"cost"`
}

// facts are what the policy depends on.
type facts struct {
	applied      int64
	known        int64 // 0 if not
	state        heliograph.State
	why          string
	alive        bool          // the upstream was heard from just now
	contact      time.Duration // since the upstream was heard from
	staleness    time.Duration // everything that the origin had so long ago is here; below 0: unknown
	answers      bool          // the origin answered
	unasked      string        // why it could not be asked, although it may live; empty if it was
	source       bool          // the node is one
	servesClient bool
	damaged      error
	peers        error  // nobody can listen where members will reach it
	room         error  // see promote.Check
	users        string // see Plan.UsersOutdated
	bump         int64  // asked for
	promoting    bool
}

// errPromoting is the refusal while another promotion is under way.
var errPromoting = errors.New("it is being promoted already: helio status shows how far it is")

// refusals is the policy: what stands against a promotion, and whether somebody who
// knows better may do it all the same.
func refusals(f facts) []Refusal {
	var list []Refusal
	never := func(format string, args ...any) {
		list = append(list, Refusal{Reason: fmt.Sprintf(format, args...)})
	}
	unlessForced := func(format string, args ...any) {
		list = append(list, Refusal{Reason: fmt.Sprintf(format, args...), Forcible: true})
	}
	if f.promoting {
		never("%v", errPromoting)
		return list
	}
	if f.applied == 0 {
		never("it holds no whole snapshot yet: there is nothing to promote")
	}
	if f.damaged != nil {
		never("its file is damaged (%v): promote another mirror", f.damaged)
	}
	switch {
	case f.servesClient:
	case f.source:
		never("it is a source node, and has no address for the clients of an etcd: promote a mirror, or restart it with --listen-clients")
	default:
		never("it serves no etcd clients, so the new etcd would have no address for them: restart it with --listen-clients")
	}
	if f.peers != nil {
		never("%v", f.peers)
	}
	if f.room != nil {
		never("%v", f.room)
	}
	if f.users != "" {
		unlessForced("the new etcd may let in whom the source does not: %s; while the source answers, "+
			"helio resync on its source node and then here brings users and roles as they are", f.users)
	}
	if f.bump > 0 && f.known > f.applied+f.bump {
		unlessForced("a bump of %d is less than the %d revisions that are known to be missing: clients would see revisions twice; use --bump-revision %d",
			f.bump, f.known-f.applied, int64(SuggestedBump))
	}
	switch {
	case f.state == heliograph.Diverged:
		unlessForced("it is diverged (%s): make sure that this is the good copy, such as when the source was restored from a backup", f.why)
	case f.answers && f.source:
		unlessForced("it is a source node, and its etcd answers: a second cluster would take writes beside that one, and the two cannot be joined again; stop the etcd first")
	case f.answers:
		unlessForced("the etcd that it mirrors answers: two clusters that both take writes cannot be joined again; stop the writers there first")
	case f.alive && f.known > f.applied:
		unlessForced("its upstream is connected and has revisions %d to %d, which are not here yet: wait until they are applied", f.applied+1, f.known)
	case f.unasked != "" && f.applied > 0:
		unlessForced("nobody knows whether the etcd that it mirrors answers, since it could not be asked (%s): "+
			"if it does, two clusters will take writes that cannot be joined again", f.unasked)
	}
	return list
}

// advise says whether revisions should be left out.
func advise(f facts) BumpAdvice {
	a := BumpAdvice{
		Needed: true, Revision: SuggestedBump,
		Cost: "everything below counts as compacted: watches from before have to read anew, and mirrors of this node get a new snapshot",
	}
	lost := fmt.Sprintf("revisions after %d may be lost that clients have seen, and the new cluster would give their numbers to other writes", f.applied)
	switch {
	case f.state == heliograph.Diverged:
		a.Why = "the source has another history: clients may have seen numbers above " + fmt.Sprint(f.applied) + " there"
	case f.known > f.applied:
		a.Why = fmt.Sprintf("revisions %d to %d of the source are known and not here: %s", f.applied+1, f.known, lost)
	case f.answers:
		a.Needed = false
		a.Why = "everything that the source has is here: it is not needed if nothing is written there any more"
	case f.known == 0:
		a.Why = "nothing was heard of the source since this node was started: " + lost
	default:
		// A source node that lost its etcd can be heard from all the time.
		a.Why = fmt.Sprintf("what the source has written since %s ago is not known: %s; it is not needed if nothing was written after that",
			round(max(f.contact, f.staleness)), lost)
	}
	return a
}

// Plan says what a promotion with opts would do now, and whether it may. It asks
// the origin whether it is there, for as long as it takes to dial everybody on the
// way, and changes nothing.
func (n *Node) Plan(ctx context.Context, opts PromoteOptions) Plan {
	n.mu.Lock()
	m, p, asked := n.mirroring, n.promoted, n.promotion
	n.mu.Unlock()
	if p != nil {
		return p.plan(opts)
	}
	plan, _ := m.plan(ctx, opts, asked != nil)
	return plan
}

// plan returns the plan and what it was made of.
func (m *mirroring) plan(ctx context.Context, opts PromoteOptions, promoting bool) (Plan, facts) {
	origin := m.askOrigin(ctx, opts, promoting)
	v := m.tracker.View()
	f := facts{
		state: v.State, why: v.Why, alive: v.Alive, contact: v.Contact, staleness: v.Staleness,
		source: m.cfg.Etcd != nil, servesClient: m.clients != nil, damaged: m.store.Damaged(), promoting: promoting,
		users: m.store.UsersOutdated(), bump: opts.BumpRevision,
	}
	f.known, f.answers = max(v.Known, origin.rev), origin.answers
	if origin.unasked {
		f.unasked = origin.why
	}
	if f.state == heliograph.Diverged {
		f.known = 0 // of another history
	}
	f.applied = m.store.Applied() // read last: what was missing may have come meanwhile
	f.room = promote.Check(m.cfg.DataDir, m.cfg.Database, f.applied, opts.BumpRevision)
	plan := Plan{
		Cluster: m.cfg.Cluster, Role: m.cfg.role(), Database: m.cfg.Database, Status: f.state, Why: f.why,
		AppliedRevision: f.applied, LastKnownRevision: f.known, MissingRevisions: -1,
		OriginAnswers: f.answers, OriginAsked: !origin.unasked, OriginWhy: origin.why, LastContactMS: millis(v.Contact), StalenessMS: millis(v.Staleness),
		VerifiedAgeMS: -1, EtcdVersion: promote.EtcdVersion(),
		ClientURLs: m.node.advertised(), ClientCertificates: m.node.clientTLS().ClientCertAuth,
		Refusals: []Refusal{},
	}
	if o := m.store.Origin(); !o.IsZero() {
		plan.Origin = o.String()
	}
	if f.known > 0 {
		plan.MissingRevisions = max(0, f.known-f.applied)
	}
	last, good := m.verifier.results()
	plan.VerifyResult, plan.VerifyWhy, plan.VerifiedRevision = last.Result, last.Why, good.Revision
	if !good.At.IsZero() {
		plan.VerifiedAgeMS = time.Since(good.At).Milliseconds()
	}
	plan.Leases, plan.LeasesUnknownTTL = countLeases(m.store.Leases())
	plan.AccessControl, plan.UsersOutdated = m.access().enabled, f.users
	plan.DatabaseBytes, _ = m.store.Size()
	if f.applied > 0 { // else there is nothing to promote
		plan.EstimateMS = planBase.Milliseconds() + plan.DatabaseBytes/(planBytesPerSec/1000)
		plan.EstimateFrom = "the size of the database, read at 100 MiB/s"
		plan.Bump = advise(f)
	}
	if plan.PeerURL, f.peers = m.node.peerURL(opts.PeerURL); f.peers == nil && !promoting {
		plan.PeerListen, f.peers = m.node.tryPeers(plan.PeerURL)
	}
	plan.PeerWarning = unresolved(ctx, plan.PeerURL)
	plan.Refusals = append(plan.Refusals, refusals(f)...)
	return plan, f
}

func countLeases(list []store.Lease) (all, unknown int) {
	for _, l := range list {
		if l.TTL <= 0 {
			unknown++
		}
	}
	return len(list), unknown
}
