package link

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// plan is what an accepted handshake says will come.
type plan struct {
	// lineage is that of the source's bytes, as far as the mirror has to know it:
	// the forks lead from the mirror's origin to the source's.
	lineage       heliograph.Lineage
	snapshot      bool  // a snapshot comes first
	snapshotRev   int64 // and ends at this revision
	snapshotBytes int64 // its size; 0 if not known
	from          int64 // the first revision that must come as entries
}

// hello is what a mirror at position at says first.
func hello(a heliograph.Address, nodeID string, at heliograph.Position) wire.Hello {
	h := wire.Hello{
		SourceCluster:    string(a.Cluster),
		SourceDatabaseID: string(a.Database),
		LastAppliedLSN:   at.Rev,
		ProtocolVersion:  wire.Version,
		NodeID:           nodeID,
		Features:         []string{wire.FeatureLeases},
	}
	if !at.Origin.IsZero() {
		h.Origin = at.Origin.String()
	}
	return h
}

// prover is what a replica offers that can show what history it holds. One that
// cannot is taken at its word.
type prover interface {
	// Proof returns digests of the history up to the applied revision.
	Proof() heliograph.Proof
}

// prove adds to a hello what its source compares before it sends anything.
func prove(h wire.Hello, r heliograph.Replica) wire.Hello {
	p, ok := r.(prover)
	if !ok || h.LastAppliedLSN < 1 {
		return h
	}
	proof := p.Proof()
	if proof.Rev != h.LastAppliedLSN {
		return h // it was replaced meanwhile: nothing is proved
	}
	h.Digests, h.Tails = proof.Blocks, proof.Tails
	return h
}

// checkAck decides whether the source that answered is the right one for a
// mirror at position at, and what will come.
func checkAck(a heliograph.Address, nodeID string, at heliograph.Position, ack wire.HelloAck) (plan, error) {
	if !ack.Accepted {
		if ack.ErrorCode == heliograph.CodeOK {
			return plan{}, broken("a refusal without a code")
		}
		return plan{}, &heliograph.RefusedError{Code: ack.ErrorCode, Detail: ack.ErrorDetail}
	}
	if ack.SourceClusterID != string(a.Cluster) {
		return plan{}, &ConfigurationError{Why: fmt.Sprintf("the source is cluster %q and the address names %q: correct the address", ack.SourceClusterID, a.Cluster)}
	}
	if ack.NodeID == nodeID {
		return plan{}, &ConfigurationError{Why: "the address is this node's own: name another node"}
	}
	if err := checkPath(nodeID, ack.Path); err != nil {
		return plan{}, err
	}
	p := plan{lineage: heliograph.Lineage{Origin: heliograph.Origin{Cluster: a.Cluster, Database: a.Database}}}
	// A source that does not know the key has the origin of its own names; it
	// is never taken for a source that tells its etcd.
	if ack.Origin != "" {
		var err error
		if p.lineage.Origin, err = heliograph.ParseOrigin(ack.Origin); err != nil {
			return plan{}, broken("%w", err)
		}
	}
	if !at.Origin.IsZero() {
		// The source has looked, but it is the mirror's data.
		p.lineage.Forks = ack.Forks
		forks, diverged := p.lineage.Admit(at.Origin.String(), at.Rev)
		if diverged != nil {
			return plan{}, diverged
		}
		p.lineage.Forks = forks
	}
	if ack.SnapshotLSN == wire.NoSnapshot {
		if at.Rev == 0 {
			return plan{}, broken("no snapshot for a mirror that has nothing")
		}
		p.from = at.Rev + 1
		return p, nil
	}
	if ack.SnapshotLSN < 1 || ack.SnapshotLSN >= math.MaxInt64 || ack.SnapshotBytesTotal > math.MaxInt64 {
		return plan{}, broken("a snapshot at revision %d of %d bytes", ack.SnapshotLSN, ack.SnapshotBytesTotal)
	}
	p.snapshot, p.snapshotRev, p.snapshotBytes = true, int64(ack.SnapshotLSN), int64(ack.SnapshotBytesTotal)
	if p.snapshotRev < at.Rev {
		return plan{}, broken("a snapshot at revision %d for a mirror at %d, which never steps back", p.snapshotRev, at.Rev)
	}
	p.from = p.snapshotRev + 1
	return p, nil
}

// errCycle says that a chain of mirrors has bitten its tail.
var errCycle = errors.New("cycle of mirrors")

// checkPath refuses a chain in which this node stands above its source, and one
// too long for the nodes below to be told in full: a cycle could hide there.
func checkPath(nodeID string, path []string) error {
	switch {
	case slices.Contains(path, nodeID):
		return &ConfigurationError{Why: "the source follows this node: one of the nodes between must follow another", Err: errCycle}
	case len(path) >= wire.MaxPath:
		return &ConfigurationError{Why: fmt.Sprintf("the source is at the end of a chain of %d nodes, the longest there may be: follow one further up", len(path))}
	}
	return nil
}
