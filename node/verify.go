package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/etcd"
	"github.com/heliograph/heliograph/upstream/link"
)

// Tries of one verification: compactions may come between the hashes, and what is
// not compared at one compaction revision cannot be compared.
const (
	verifyTries = 5
	verifyPause = time.Second
)

// reachWait is how long a source node has to apply the revision that etcd has
// hashed, which was its newest: one that follows has it at once.
const reachWait = time.Minute

// tryVerify verifies once, and reports whether to try again.
type tryVerify func(ctx context.Context) (v heliograph.Verification, again bool)

func newVerifier(m *mirroring, once tryVerify) *verifier {
	return &verifier{
		once: func(ctx context.Context) heliograph.Verification { return m.attempt(ctx, once) },
		// Who has compacted since has nothing to compare it with.
		current:  func(v heliograph.Verification) bool { return v.CompactRevision >= m.store.Compacted() },
		ended:    m.verified,
		interval: m.cfg.VerifyInterval,
		wake:     make(chan struct{}, 1),
	}
}

// attempt tries until there is a result, or a reason why there is none that will
// not pass by itself.
func (m *mirroring) attempt(ctx context.Context, once tryVerify) heliograph.Verification {
	generation := m.store.Generation()
	v, again := once(ctx)
	for tries := 1; again && tries < verifyTries && pause(ctx, verifyPause); tries++ {
		v, again = once(ctx)
	}
	switch {
	case m.store.Generation() != generation:
		return heliograph.Unverified("the contents were replaced meanwhile")
	case ctx.Err() != nil && v.Result == heliograph.VerifyUnknown:
		v.Why = fmt.Sprintf("not done within %s: %s", verifyTimeout, v.Why)
	case v.Result == heliograph.VerifyUnequal && errors.Is(ctx.Err(), context.Canceled):
		return heliograph.Unverified("stopped before it was certain that a difference lasts")
	case v.Result == heliograph.VerifyUnequal:
		// Noted before anybody acts on it: a restart must not forget it.
		if err := m.store.SetUnequal(generation, unequal(v)); err != nil {
			return heliograph.Unverified(err.Error())
		}
	}
	return v
}

// verifyEtcd compares a source node with its etcd.
func (m *mirroring) verifyEtcd(ctx context.Context, up *etcd.Upstream) (v heliograph.Verification, again bool) {
	applied := m.store.Applied()
	if applied < 1 {
		return heliograph.Unverified("this node has received no snapshot yet"), false
	}
	theirs, err := up.HashKV(ctx)
	if err != nil {
		return notHashed(err, applied)
	}
	rev := theirs.Revision
	if rev < applied {
		return heliograph.Unverified(fmt.Sprintf("this node has applied revision %d, and etcd (%s) has revision %d", applied, theirs.Endpoint, rev)), true
	}
	soon, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	if err := m.reach(soon, rev); err != nil {
		return heliograph.Unverified(err.Error()), false
	}
	ours, err := m.store.HashAt(ctx, rev, theirs.CompactRevision)
	if err != nil {
		return notHashed(err, rev)
	}
	v = judged(heliograph.Verification{
		Revision: rev, CompactRevision: theirs.CompactRevision,
		EtcdHash: theirs.Hash, EtcdEndpoint: theirs.Endpoint, Hash: ours,
	})
	// A difference has to last: while a compaction is under way, and no key is
	// left at its revision, etcd hashes records that are about to go.
	return v, v.Result == heliograph.VerifyUnequal
}

// verifyChain compares a mirror with the etcd at the head of its chain.
func (m *mirroring) verifyChain(ctx context.Context, up *link.Link) (v heliograph.Verification, again bool) {
	v = up.Verify(ctx)
	if v.Result == heliograph.VerifyUnknown {
		return v, false
	}
	if err := m.reach(ctx, v.Revision); err != nil {
		return heliograph.Unverified(err.Error()), false
	}
	ours, err := m.store.HashAt(ctx, v.Revision, v.CompactRevision)
	if err != nil {
		return notHashed(err, v.Revision)
	}
	v.Hash = ours
	v = judged(v)
	return v, v.Result == heliograph.VerifyUnequal // a difference has to last
}

// judged compares the hashes. What a node between holds is that node's trouble.
func judged(v heliograph.Verification) heliograph.Verification {
	v.Result, v.Why = heliograph.VerifyEqual, ""
	if v.Hash != v.EtcdHash {
		v.Result = heliograph.VerifyUnequal
		v.Why = fmt.Sprintf("HashKV at revision %d, compacted at %d, is %08x in etcd (%s) and %08x here",
			v.Revision, v.CompactRevision, v.EtcdHash, v.EtcdEndpoint, v.Hash)
	}
	return v
}

// notHashed is the result where a hash could not be had. That etcd or this node
// was compacted between the two hashes, or that the member of etcd that was asked
// is behind, passes.
func notHashed(err error, rev int64) (v heliograph.Verification, again bool) {
	if errors.Is(err, heliograph.ErrCompacted) {
		return heliograph.Unverified(fmt.Sprintf("a compaction came between the hashes at revision %d (%v)", rev, err)), true
	}
	return heliograph.Unverified(err.Error()), errors.Is(err, heliograph.ErrFutureRevision)
}

// reach waits until rev is applied.
func (m *mirroring) reach(ctx context.Context, rev int64) error {
	for {
		changed := m.store.Changed()
		if m.store.Applied() >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("this node has applied revision %d, and not yet %d, which etcd has hashed", m.store.Applied(), rev)
		}
	}
}

// verified takes the result of a verification.
func (m *mirroring) verified(v heliograph.Verification) {
	m.node.verifications.WithLabelValues(string(v.Result)).Inc()
	log := m.cfg.Log.With("part", "verify", "rev", v.Revision, "result", string(v.Result))
	switch v.Result {
	case heliograph.VerifyEqual:
		log.Info("verified", "compacted", v.CompactRevision, "took_ms", v.TookMS)
	case heliograph.VerifyUnequal:
		log.Error("verification found a difference", "err", v.Why)
		select {
		case m.unequal <- unequal(v):
		default: // it is known already
		}
	default:
		log.Warn("not verified", "err", v.Why)
	}
}

// unequal says of a verification that it has found a difference.
func unequal(v heliograph.Verification) *heliograph.DivergedError {
	return &heliograph.DivergedError{Rev: v.Revision, Why: v.Why +
		": one of the two is damaged or has missed something; helio resync replaces this copy"}
}

// pause waits, and reports whether ctx still lasts.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
