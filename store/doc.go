// Package store keeps an exact replica of one etcd database: a bbolt file in
// etcd's own schema, driven by etcd's own MVCC. Revision N here is revision N
// there, with the same bytes, and etcd's HashKV proves it.
//
// [Open] a [Store]; deliver to it with [Store.ReceiveSnapshot] and
// [Store.Apply]; read from it with [Store.KV], [Store.History],
// [Store.Snapshot] and [Store.HashKV]; follow it with [Store.Changed].
//
// # Files
//
//	<dir>/<database>.db        the contents; absent until the first snapshot
//	<dir>/<database>.partial   a snapshot on its way in
//	<dir>/<database>.lock      held while a process has the store open
//	<dir>/spool/<database>@*   copies on their way out
//
// The contents hold one bucket of ours, heliograph, beside etcd's. It says
// where the bytes come from, and it is in the file before the file gets its
// name: identity and data appear together.
//
// What the source tells of its leases stands in etcd's own bucket, where an etcd
// that is started on the file finds it; see [Store.ApplyLeases] and
// [Store.LeasesSince]. Nothing expires here.
//
// Digests of blocks of revisions tell whether two stores hold the same history,
// whatever either has compacted: [Store.Proof], [Store.Digest]. [Store.Reset]
// drops the contents, so that another history may come.
//
// # Promises
//
// A batch is checked against the history before anything is written: what MVCC
// would derive (create revision, version, tombstone) must be what the records
// say, else nothing happens and Apply returns a *heliograph.DivergedError.
//
// Readers see a batch when Apply returns. It is durable at the next commit, at
// most [Config.CommitInterval] later, or when [Store.Commit] returns. A crash
// leaves a whole revision, never below [Store.Durable].
//
// A received snapshot is checked, completed and made durable under another
// name. A crash leaves the old contents or the new ones, never a mixture. It
// replaces contents only if both are of one history, record by record.
//
// A file whose records are not those that were applied is noticed at Open, as far
// as they have not been compacted: see [Store.Damaged]. What a verification has found
// is remembered with the contents: see [Store.SetUnequal].
//
// A failed write or fsync of the contents ends the process, as it does in etcd:
// after it nobody knows what is on the disk. So that a full disk does not come
// to that, Apply refuses with [ErrNoSpace] while too little is free.
package store
