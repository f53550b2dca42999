// Package link follows one source node and hands what it receives to a replica.
//
// Create a [Link] with [New] and call [Link.Run]; it dials the addresses of the
// source in turn, resumes from the replica's revision or receives a snapshot,
// and reconnects until its context ends or the histories have diverged.
// Revisions reach the replica in order, each whole and each once; what does not
// follow exactly is refused before any of it is applied.
//
// One connection has a control stream and one bulk stream at a time. Bulk is
// read no faster than the replica applies, so QUIC's flow control holds the
// source back; control is never behind it. What a source may make this side
// hold is bounded by the receive windows, one frame, and one revision.
//
// The decisions stand apart from the goroutines and are plain values: [checkAck]
// whether a source is the right one, backoff and classify when to try again,
// vigil whether the source still lives, acks what to acknowledge.
package link
