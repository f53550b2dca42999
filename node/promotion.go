package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
)

// promoteTimeout bounds a promotion up to its commit, and how long who asked waits
// for its outcome: bigger databases than a disk reads in that time are exported.
const promoteTimeout = 30 * time.Minute

// errPromotionAsked ends mirroring.
var errPromotionAsked = errors.New("a promotion was asked for")

// NotPromotableError is what a promotion is refused with. Nothing was changed.
type NotPromotableError struct {
	Refusals []Refusal // at least one
	Forced   bool      // those that can be forced are not among them
	Before   bool      // the node is promoted already
}

func (e *NotPromotableError) Error() string {
	reasons := make([]string, len(e.Refusals))
	forcible := true
	for i, r := range e.Refusals {
		reasons[i] = r.Reason
		forcible = forcible && r.Forcible
	}
	s := "not promoted: " + strings.Join(reasons, "; ")
	switch {
	case e.Before:
		s = "nothing was done, this node is promoted already: " + strings.Join(reasons, "; ")
	case forcible:
		s += "; --force promotes all the same"
	}
	return s
}

// promotion is one that was asked for. A nil one is none.
type promotion struct {
	opts       PromoteOptions
	peerListen string // Plan.PeerListen
	lastKnown  int64  // of the origin; 0 if unknown

	done chan struct{} // closed when it is concluded
	once sync.Once
	rec  promote.Record // fixed when done is closed
	err  error

	mu   sync.Mutex
	what string // is being done; empty before it begins
}

// Promotion is what [Node.Promote] returns.
type Promotion struct {
	promote.Record
	Before bool `json:"before"` // it was promoted already, and nothing was done
}

// outcome is what a concluded promotion has come to.
func (p *promotion) outcome() (Promotion, error) { return Promotion{Record: p.rec}, p.err }

// step says what is being done.
func (p *promotion) step(what string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
}

// doing returns what is being done; empty if nothing is.
func (p *promotion) doing() string {
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.what
}

// Promote makes an etcd of the node, and returns its record when that accepts
// writes. A node that is promoted already is left alone, and its record returned,
// unless opts ask for what that does not have.
// It is refused with a *NotPromotableError, see [Plan]; another error says what the
// node is now. A promotion that has begun goes on when ctx ends. Run must be
// running.
func (n *Node) Promote(ctx context.Context, opts PromoteOptions) (Promotion, error) {
	asked := &promotion{opts: opts, done: make(chan struct{})}
	n.mu.Lock()
	m, p, other := n.mirroring, n.promoted, n.promotion
	if p == nil && other == nil {
		n.promotion = asked
	}
	n.mu.Unlock()
	switch {
	case p != nil:
		rec, err := p.again(ctx, opts)
		return Promotion{rec, true}, err
	case other != nil:
		n.conclude(asked, promote.Record{}, &NotPromotableError{Refusals: refusals(facts{promoting: true})})
		return asked.outcome()
	}
	plan, f := m.plan(ctx, opts, false)
	asked.lastKnown = f.known
	if ctx.Err() != nil { // nor can the origin have answered
		n.conclude(asked, promote.Record{}, fmt.Errorf("not promoted: %w", context.Cause(ctx)))
		return asked.outcome()
	}
	if err := allowed(plan.Refusals, opts.Force); err != nil {
		n.conclude(asked, promote.Record{}, err)
		return asked.outcome()
	}
	asked.opts.PeerURL, asked.peerListen = plan.PeerURL, plan.PeerListen
	select {
	case m.asks <- asked:
	case <-m.ended:
		n.conclude(asked, promote.Record{}, &conflictError{errors.New("not promoted: the node is stopping")})
	case <-ctx.Done():
		n.conclude(asked, promote.Record{}, fmt.Errorf("not promoted: %w", context.Cause(ctx)))
	}
	select {
	case <-asked.done:
		return asked.outcome()
	case <-ctx.Done():
		return Promotion{}, fmt.Errorf("the promotion goes on, helio status shows how far it is: %w", context.Cause(ctx))
	}
}

// allowed returns what still stands against a promotion.
func allowed(list []Refusal, force bool) error {
	var left []Refusal
	for _, r := range list {
		if !force || !r.Forcible {
			left = append(left, r)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return &NotPromotableError{Refusals: left, Forced: force}
}

// conclude tells who asked for the outcome, and leaves the one line of audit. Only
// the first outcome counts. What was promoted is that, whatever err says of its etcd.
func (n *Node) conclude(p *promotion, rec promote.Record, err error) {
	if p == nil {
		return
	}
	p.once.Do(func() {
		p.rec, p.err = rec, err
		args := []any{"forced", p.opts.Force, "bump", p.opts.BumpRevision, "last_known", p.lastKnown}
		_, refused := errors.AsType[*NotPromotableError](err)
		switch {
		case refused:
			args = append(args, "outcome", "refused", "err", err)
		case rec.State != promote.Promoted:
			args = append(args, "outcome", "failed", "err", err)
		default:
			args = append(args, "outcome", "promoted", "rev", rec.Revision, "origin", rec.Origin, "etcd_id", rec.EtcdID.String())
			if err != nil {
				args = append(args, "err", err)
			}
		}
		n.audit("promote", p.opts.By, args...)
		n.mu.Lock()
		mine := n.promotion == p
		n.mu.Unlock()
		if mine { // there is no other one that could be under way
			n.noteAudit()
			n.mu.Lock()
			n.promotion = nil
			n.mu.Unlock()
		}
		close(p.done)
	})
}

// promoteReplica is [promote.Promote], but for tests of what follows its failure.
var promoteReplica = promote.Promote

// change makes the node a promoted one, or, if that fails, one that mirrors again.
// m has stopped. After an error the node cannot go on, be it that it was told to
// stop: a restart finds out.
func (n *Node) change(ctx context.Context, m *mirroring, asked *promotion) error {
	asked.step("the replica is being closed")
	n.takePeers(true)
	if v := m.tracker.View(); v.State != heliograph.Diverged {
		asked.lastKnown = max(asked.lastKnown, v.Known)
	}
	err := m.close()
	var rec promote.Record
	if err == nil {
		asked.step(fmt.Sprintf("a cluster of its own is being made of the replica, at revision %d", m.store.Applied()))
		timed, cancel := context.WithTimeout(ctx, promoteTimeout)
		defer cancel()
		rec, err = promoteReplica(timed, promote.Config{
			Dir: n.cfg.DataDir, Database: n.cfg.Database, Cluster: n.cfg.Cluster,
			PeerURLs: []string{asked.opts.PeerURL}, BumpRevision: asked.opts.BumpRevision,
			LastKnownRevision: asked.lastKnown, By: asked.opts.By, OutdatedUsers: asked.opts.Force,
			Log: n.cfg.Log.With("part", "promote"),
		})
	}
	if err != nil {
		n.cfg.Log.Error("promotion failed", "err", err)
		done, found, rerr := promote.Recover(n.cfg.DataDir, n.cfg.Database, n.cfg.Log.With("part", "promote"))
		switch {
		case rerr != nil:
			rerr = fmt.Errorf("the promotion failed, and whether it took effect is not known: start the node again, which finds out: %w", errors.Join(err, rerr))
			n.conclude(asked, promote.Record{}, rerr)
			return rerr
		case !done && ctx.Err() != nil: // told to stop
			n.conclude(asked, rec, &conflictError{fmt.Errorf("not promoted, since the node is stopping: it is a mirror as before: %w", err)})
			return context.Cause(ctx) // there is no phase to go on with
		case !done:
			return n.mirrorAgain(asked, err)
		}
		rec = found
	}
	asked.step("its etcd is being started")
	p := newPromoted(n, rec, asked)
	p.peerListen = asked.peerListen
	n.mu.Lock()
	n.mirroring, n.promoted = nil, p
	n.mu.Unlock()
	return nil
}

// mirrorAgain begins to mirror again after a promotion that has left nothing.
func (n *Node) mirrorAgain(asked *promotion, why error) error {
	asked.step("it has failed, and the replica is being opened again")
	n.takePeers(false)
	m, err := n.openMirroring()
	if err != nil {
		err = fmt.Errorf("the promotion failed, and the node cannot go on as a mirror: start it again: %w", errors.Join(why, err))
		n.conclude(asked, promote.Record{}, err)
		return err
	}
	n.mu.Lock()
	n.mirroring = m
	n.mu.Unlock()
	n.conclude(asked, promote.Record{}, fmt.Errorf("not promoted, and the node mirrors again as before: %w", why))
	return nil
}
