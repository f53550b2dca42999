// Package session decides what one mirror gets: whether it is accepted at all
// ([Decide]), and then, record by record, what comes next ([Progress]).
//
// It turns values into values. It knows no network, no clock, no locks and no
// goroutines; package source owns those and asks. A Progress is one mirror as a
// small state machine:
//
//	             SnapshotSent            Next finds nothing left
//	Snapshot ───────────────► CatchingUp ──────────────────────► Live
//	                              ▲                               │
//	                              └── Blocked, CatchUp ◄──────────┘
//
// What is promised: records go out in order, each once, from the revision after
// the one that the mirror holds; no more than a window of bytes is on its way
// between two revisions; and an acknowledgement that cannot be true is an error.
package session
