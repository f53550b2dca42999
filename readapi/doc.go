// Package readapi serves the etcd v3 gRPC API on a replica, to any etcd
// client, read-only.
//
// Create a [Server] with [New] and call [Server.Serve] with a listener. What
// it does not do: accept a write of any kind. Every call that would change
// something is answered with a *reads.ReadOnlyError, which names the source.
//
// # Reads
//
// A Range, RangeStream or Txn is linearizable unless it says serializable: the
// server asks the source for its current revision ([Config.ReadIndex]), waits
// until the replica has applied it, and answers from the replica. Reads that
// arrive while such a round trip is under way share the next one; no read joins
// a round trip that began before it arrived. A serializable read is answered at
// once, and package reads lets a client say how old an answer may be, or which
// revision it must contain.
//
// Answers are computed by etcd's own code on etcd's own store. They differ
// from the source's in two header fields: member_id is this node's (derived
// from its name), and raft_term is always 1, because a mirror has no raft log.
// cluster_id and revision are the source's; raft_index, in Status, is the
// applied revision.
//
// # Watches
//
// A revision is delivered whole: in one response, or in fragments if the
// client asked for them. A progress notification for revision N follows
// everything up to N. A client that does not read costs a byte budget: beyond
// it the watches with events waiting are parked, which means that they are
// remembered as a revision in the history, and resumed from there when the
// client has caught up. If the history has been compacted meanwhile, they are
// cancelled with the compaction revision, as etcd does.
//
// Requests that ask for a leader (clientv3.WithRequireLeader) are refused, and
// watches that did are cancelled, with etcd's no-leader error while the source
// is out of reach ([Config.UpstreamAlive]).
//
// # Who may call
//
// [Config.Admit] decides for every call, and again every second for streams that
// are open. The same port answers /health and /version to anyone, as etcd does;
// over TLS, gRPC is told from plain HTTP when a connection begins and keeps its
// own transport.
//
// # Errors
//
// Errors are plain Go errors inside the package and become statuses once, in
// the interceptors, recognised through any wrapping.
package readapi
