package session

import (
	"fmt"

	"github.com/heliograph/heliograph"
)

// History is what a source tells of the history that it holds.
type History interface {
	// DigestAt returns the digest of a whole block, false if it is not known.
	DigestAt(block int64) (sum uint64, ok bool)
	// Digest returns the digest of the revisions [from, to], at most
	// heliograph.DigestBlock of them; an error if it cannot tell.
	Digest(from, to int64) (sum uint64, err error)
}

// checkHistory compares what the mirror shows of its history with what the source
// holds. It comes before the mirror's revision means anything: a number is a place
// only within one history.
func checkHistory(h Hello, _ Peer, n Node) Decision {
	if !digestsCompared || n.History == nil || h.LastApplied < 1 {
		return Decision{}
	}
	proven, after := false, int64(1) // equal up to here
	for _, b := range h.Proof.Blocks {
		sum, ok := n.History.DigestAt(b.Block)
		switch {
		case !ok || b.Last() > n.Applied || b.Last() > h.LastApplied:
			continue
		case sum != b.Sum:
			return differs(n, after+1, b.Last())
		}
		proven, after = true, b.Last()
	}
	to := h.LastApplied
	for _, t := range h.Proof.Tails {
		if t.From < 1 || t.From > to || to-t.From >= heliograph.DigestBlock || to > n.Applied {
			continue
		}
		sum, err := n.History.Digest(t.From, to)
		switch {
		case err != nil: // compacted: a shorter one may not be
			continue
		case sum != t.Sum:
			return differs(n, max(t.From, after+1), to)
		}
		return Decision{Proven: true} // the others are parts of this one
	}
	return Decision{Proven: proven}
}

func differs(n Node, from, to int64) Decision {
	where := fmt.Sprintf("revision %d", from)
	if to > from {
		where = fmt.Sprintf("revisions %d to %d", from, to)
	}
	return refuse(heliograph.CodeDiverged, "the mirror holds other records in %s than node %s: "+
		"the origin was restored or created anew, or the mirror's file was written to; "+
		"check that this is the right source, or run helio resync on the mirror to follow it as it is now", where, n.NodeID)
}
