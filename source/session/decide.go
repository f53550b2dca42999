package session

import (
	"fmt"
	"slices"

	"github.com/heliograph/heliograph"
)

// Hello is what a mirror asks for.
type Hello struct {
	Cluster     string // the cluster that it means to follow
	Database    string
	LastApplied int64 // 0 asks for a snapshot
	Version     uint16
	NodeID      string // "" if not said
	Origin      string // heliograph.Origin of what it holds; "" if not said
	Proof       heliograph.Proof
	Asks        bool // it follows another node, and gets neither snapshot nor entries
}

// Peer is who the mirror proved to be.
type Peer struct {
	Identity heliograph.Identity
	Err      error // why its certificate says no identity; nil if it does
}

// Node is the source at one moment.
type Node struct {
	Cluster  heliograph.ClusterID
	Database heliograph.DatabaseID
	NodeID   string
	Version  uint16   // the protocol version that is spoken
	Allow    []string // names of the mirrors that may follow; empty: every observer

	Lineage  heliograph.Lineage
	MaxForks int     // how many of its forks the protocol can say
	Applied  int64   // 0 while there is no data
	Floor    int64   // the history is complete above this revision
	History  History // nil cannot tell

	Head    int64    // the origin's newest revision, asked for after the hello
	Fresh   bool     // Head is known
	Path    []string // node ids from the origin down to the node's upstream
	MaxPath int      // the longest path, this node included, that the protocol can say

	Mirrors, MaxMirrors         int // connected now, and at most
	FromAddress, MaxFromAddress int // the same, from this mirror's address
	Snapshots, MaxSnapshots     int // snapshots being handed down
}

// Decision answers a hello.
type Decision struct {
	Code     heliograph.Code // CodeOK if accepted
	Detail   string          // for the mirror's operator; "" if accepted
	Snapshot bool            // accepted with a snapshot; the entries follow behind it
	From     int64           // accepted without: the first revision to send
	// Origin is this node's, in a refusal of a mirror whose own origin is not known
	// here: its history may have left this one. "" in any other.
	Origin string
	// Forks lead from what the mirror holds to what the source does, oldest first;
	// none if they are of one origin.
	Forks []heliograph.Fork
	// Proven: what the mirror holds was compared with what the source holds, and
	// is equal. False if they have nothing in common that could be compared.
	Proven bool
}

// Accepted reports whether the mirror may follow.
func (d Decision) Accepted() bool { return d.Code == heliograph.CodeOK }

// Decide answers a hello. The checks come in the protocol's order, and the
// first that fails answers: an identity that is not allowed here learns nothing
// of the cluster, and a mistake that waiting cannot mend is named before a
// shortage that it can. Where a mirror stands that only asks is no matter.
func Decide(h Hello, p Peer, n Node) Decision {
	out := Decision{From: h.LastApplied + 1}
	for _, check := range []func(Hello, Peer, Node) Decision{
		checkPeer, checkNames, checkChain, checkOrigin, checkHistory, checkPosition, checkLoad,
	} {
		d := check(h, p, n)
		if !d.Accepted() {
			return d
		}
		out.Proven = out.Proven || d.Proven
		out.Forks = append(out.Forks, d.Forks...)
	}
	if h.needsSnapshot(n) {
		out.Snapshot, out.From = true, 0
	}
	return out
}

// needsSnapshot reports whether the history does not hold what the mirror lacks.
// A mirror exactly at the floor needs only what lies above it.
func (h Hello) needsSnapshot(n Node) bool {
	return !h.Asks && (h.LastApplied < 1 || h.LastApplied < n.Floor)
}

func checkPeer(_ Hello, p Peer, n Node) Decision {
	switch {
	case p.Err != nil:
		return refuse(heliograph.CodeNotAuthorized, "the certificate carries no identity that is known here")
	case !p.Identity.Role.Observes():
		return refuse(heliograph.CodeObserverOnly, "a certificate of role %s cannot follow: use one of role mirror or relay", p.Identity.Role)
	case len(n.Allow) > 0 && !slices.Contains(n.Allow, p.Identity.Name):
		return refuse(heliograph.CodeNotAuthorized, "the name %s is not allowed here", p.Identity.Name)
	}
	return Decision{}
}

func checkNames(h Hello, _ Peer, n Node) Decision {
	switch {
	case h.Version != n.Version:
		return refuse(heliograph.CodeBadVersion, "protocol version %d is not spoken: this node speaks %d", h.Version, n.Version)
	case h.Cluster != string(n.Cluster):
		return refuse(heliograph.CodeClusterMismatch, "this is cluster %s, not %.80q", n.Cluster, h.Cluster)
	case h.Database != string(n.Database):
		return refuse(heliograph.CodeUnknownDatabase, "there is no database %.80q: this node serves %s", h.Database, n.Database)
	}
	return Decision{}
}

func checkChain(h Hello, _ Peer, n Node) Decision {
	switch {
	case h.NodeID != "" && h.NodeID == n.NodeID:
		return refuse(heliograph.CodeSelfMirror, "node %s would follow itself: check the address, and that no data directory was copied", n.NodeID)
	case h.NodeID != "" && slices.Contains(n.Path, h.NodeID):
		return refuse(heliograph.CodeCycle, "node %s follows %.80q itself, which would now follow it", n.NodeID, h.NodeID)
	case len(n.Path)+1 > n.MaxPath:
		return refuse(heliograph.CodeCycle, "node %s is %d nodes below the origin: chains of more than %d are not followed", n.NodeID, len(n.Path), n.MaxPath)
	}
	return Decision{}
}

// checkOrigin compares where both histories come from. A mirror of a cluster that
// this one was promoted from may go on here if it has not passed the fork.
func checkOrigin(h Hello, _ Peer, n Node) Decision {
	if n.Applied < 1 {
		return refuse(heliograph.CodeNotReady, "node %s has received no snapshot itself yet", n.NodeID)
	}
	if h.Origin == "" {
		return Decision{}
	}
	forks, diverged := n.Lineage.Admit(h.Origin, h.LastApplied)
	switch {
	case diverged != nil:
		d := refuse(heliograph.CodeDiverged, "%s", diverged.Why)
		if diverged.Rev == 0 {
			d.Origin = n.Lineage.Origin.String()
		}
		return d
	case len(forks) > n.MaxForks:
		return refuse(heliograph.CodeDiverged, "the mirror holds %.200s, from which %d promotions lead to %s, more than the %d that can be told: "+
			"helio resync on the mirror to follow it as it is now", h.Origin, len(forks), n.Lineage.Origin, n.MaxForks)
	}
	return Decision{Forks: forks}
}

func checkPosition(h Hello, _ Peer, n Node) Decision {
	switch {
	case h.LastApplied <= n.Applied, h.Asks:
		return Decision{}
	case n.Fresh && n.Head < h.LastApplied:
		return refuse(heliograph.CodeDiverged, "the mirror is at revision %d, the origin only at %d: it was restored or re-created; resync the mirror to follow it", h.LastApplied, n.Head)
	}
	// A node that was killed may have lost its last moments, and gets them back.
	return refuse(heliograph.CodeNotReady, "the mirror is at revision %d, node %s only at %d so far", h.LastApplied, n.NodeID, n.Applied)
}

func checkLoad(h Hello, _ Peer, n Node) Decision {
	switch {
	case n.Mirrors >= n.MaxMirrors:
		return refuse(heliograph.CodeOverloaded, "%d mirrors are connected, at most %d may be", n.Mirrors, n.MaxMirrors)
	case n.FromAddress >= n.MaxFromAddress:
		return refuse(heliograph.CodeOverloaded, "%d mirrors are connected from this address, at most %d may be", n.FromAddress, n.MaxFromAddress)
	case h.needsSnapshot(n) && n.Snapshots >= n.MaxSnapshots:
		return refuse(heliograph.CodeOverloaded, "%d snapshots are being handed down, at most %d may be", n.Snapshots, n.MaxSnapshots)
	}
	return Decision{}
}

func refuse(code heliograph.Code, format string, args ...any) Decision {
	return Decision{Code: code, Detail: fmt.Sprintf(format, args...)}
}
