// Package source serves a replica to mirrors over QUIC.
//
// Create a [Server] with [New] and call [Server.Serve]; it accepts mirrors until
// its context ends. Each mirror that package session accepts gets a snapshot if
// the history does not reach back to it, then the records of every revision, in
// order, each once.
//
//	replica ─► feed ──(frames encoded once)──┬─► mirror ═ control ═╗
//	   │                                     ├─► mirror            ╠═ QUIC
//	   └─(history, for who is behind)────────┴─► mirror ═ bulk ════╝
//
// What is promised: a mirror costs a cursor into the history and bounded
// buffers, never a queue; one that stops reading, acknowledging or speaking is
// closed by a deadline; control frames never wait behind bulk ones; and nothing
// of the replica is sent before the identity has been checked.
package source
