// Package etcd follows an etcd cluster, 3.4 or newer, and hands its revisions
// to a replica, one batch for each.
//
// Create an [Upstream] with [New] and call [Upstream.Run]. It reads a snapshot
// when the replica holds nothing or when etcd no longer has the revisions that
// the replica needs, and then watches the whole keyspace. Batches arrive in
// revision order, whole and without a gap: what etcd sends is checked, never
// believed.
//
// # How it catches up
//
// A watcher that is behind gets at most 1,000 revisions per 100 ms from etcd,
// so behind a busy cluster it stays behind for ever. The history that is
// missing is therefore cut into tiles of fewer revisions than that, each with
// its own watcher on one shared stream, and the last tile begins in the future:
//
//	applied              head
//	   ├──── 999 ────┼──── 999 ────┼──── 999 ────┼──── live, no end ───►
//
// A watcher that begins in the future is up to date from the start. Events of
// later tiles are held back until the earlier ones are complete, within a
// budget of bytes: big revisions make for few tiles, small ones for many.
//
// # What no watch tells
//
// Which leases there are, with their granted TTLs, and whether access control is
// on, is asked for every few seconds. A lease that a record names and that is not
// known yet is asked for at once. Whoever follows an old etcd, or one that does
// not answer this, still follows.
//
// # What it trusts
//
// A connection is to one member at a time. It is followed only if it is of the
// etcd cluster that the replica comes from, has reached the replica's revision
// and holds the same records at that revision. A member that stays silent is
// left within seconds, whether it is dead, stopped or cut off from its leader.
package etcd
