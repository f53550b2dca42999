// Package node assembles one Heliograph node and supervises it: a store, the
// upstream that fills it, the source that serves further mirrors from it, the
// etcd API that clients read, and the admin API.
//
// [Open] takes every resource (the data directory, the sockets), so mistakes
// show before anything runs; [Node.Run] runs until its context ends. A [Tracker]
// turns what the upstream reports into the state, lag and staleness of
// [heliograph.Status].
//
// [Node.Promote] ends all that for good and runs an etcd on the replica in its
// place; [Node.Plan] says before what that would mean, and what stands against it.
package node
