// Package promote turns the file of a replica into the data directory of an
// etcd: the same revisions, a cluster id of its own, writable.
//
// The node stops following and closes its store; then [Promote] does the rest,
// and [Start] or [Serve] runs the etcd. [Recover] runs at every start of a node,
// before its store is opened: it finishes or takes back what a crash cut short.
// [Read] and [Forks] say what has happened. [Export] writes the same for an etcd
// that is run by other means.
//
// # The steps, and what a crash leaves
//
//	1  promotion.json: begun                       a mirror, untouched
//	2  <database>.etcd.partial: WAL, raft snapshot a mirror, untouched
//	3  one transaction in <database>.db            ── the commit point ──
//	4  <database>.db becomes member/snap/db        promoted, to be finished
//	5  <database>.etcd.partial becomes <database>.etcd
//	6  promotion.json: promoted                    promoted
//
// What was taken back leaves promotion.json: taken back. [NoteAudit] removes it, as
// it notes in the record of a promotion that the audit has it.
//
// All that changes in the replica's file changes in the one bbolt transaction of
// step 3: membership, raft position, leases, alarms, bumped revision, and the
// record of the fork with the token of this promotion. Before it, the file is the
// mirror's, to the last byte of every bucket. After it, the file itself says that
// it is promoted, [Recover] goes on to the end, and the package store refuses the
// file. Nothing big is copied and no link is needed; a disk that is full, or a
// revision that was bumped, cannot leave something between mirror and cluster.
//
// A failed fsync is the exception that it is everywhere: nobody knows what is on
// the disk then. Promote says so, and the next Recover believes the file.
//
// # In the file
//
// The bucket heliograph of a promoted database holds
//
//	format  "promoted", which package store does not open
//	origin  heliograph.Origin, as text, of the mirrored etcd
//	forks   heliograph.EncodeForks: JSON, oldest first
//
// etcd ignores the bucket, and hands it to new members and into snapshots. Users
// and roles stay as they were; alarms and members of the old cluster go.
package promote
