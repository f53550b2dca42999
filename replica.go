package heliograph

import "io"

// Replica is where an upstream delivers what it follows. One goroutine at a
// time calls Apply, Compact and ReceiveSnapshot; the rest may be called by any,
// unless it says otherwise.
type Replica interface {
	// Origin returns where the replica's bytes come from; zero before the
	// first snapshot.
	Origin() Origin
	// Applied returns the last applied revision; 0 before the first snapshot.
	Applied() int64
	// Durable returns the last revision that a crash cannot take back.
	Durable() int64
	// Compacted returns the compaction revision; 0 if never compacted.
	Compacted() int64

	// Apply makes the batch visible to readers before it returns; durable
	// follows (see Durable). The batch is not retained. A batch that is not
	// the next one gives a *GapError, one whose records cannot be the next
	// of this history a *DivergedError.
	Apply(b Batch) error
	// Commit makes durable all that was applied before the call and returns
	// the durable revision. It blocks for an fsync.
	Commit() (int64, error)
	// Compact tells the replica that its upstream's compaction revision is
	// rev. It returns at once; the replica follows when it has applied rev
	// and its own settings and readers allow.
	Compact(rev int64)
	// ReceiveSnapshot begins to receive a snapshot of total bytes (0: not
	// known). It replaces what the replica holds only at Commit.
	ReceiveSnapshot(total int64) (SnapshotReceiver, error)

	// ApplyLeases takes a change of the origin's leases: granted TTLs of those
	// that are there, ids of those that are not. A lease that keys are
	// attached to stays until they have gone, which records tell. It is
	// visible on return and durable later. It may run beside Apply, but not
	// beside itself. Before the first snapshot the error is ErrNotReady, and
	// what was told is lost. The change is not retained.
	ApplyLeases(c LeaseChange) error
	// SetAuth says whether the origin has access control on, and at which
	// revision of its users and roles. It counts at once, also before the
	// first snapshot, and is durable on return if anything is. It may run
	// beside Apply, but not beside itself.
	SetAuth(enabled bool, revision uint64) error
}

// SnapshotReceiver takes one snapshot, in order. Exactly one of Commit and
// Abort ends it; Abort after Commit does nothing.
type SnapshotReceiver interface {
	// WriteChunk appends p, which must begin at offset. Another offset than
	// the bytes received so far is refused. p is not retained.
	WriteChunk(offset int64, p []byte) error
	// Commit checks length and SHA-256, makes the file durable, and replaces
	// what the replica holds; it returns the snapshot's revision. Readers
	// and watchers go on with the new contents.
	Commit(size int64, sum [32]byte, origin Origin) (int64, error)
	// Abort drops what was received and leaves nothing behind.
	Abort() error
}

// Snapshot is a consistent copy of a replica that is being handed down. It may
// be shared: ReadAt is safe for concurrent use.
type Snapshot interface {
	io.ReaderAt
	Rev() int64       // the copy holds every revision up to this one
	Size() int64      // in bytes
	SHA256() [32]byte // of the whole copy
	Release()         // gives up this use of it; a second call is harmless
}

// Reporter hears from an upstream how it fares. Calls are cheap, do not block,
// and may come from any goroutine.
type Reporter interface {
	// Connecting says that a connection to addr is being tried.
	Connecting(addr string)
	// Connected says that addr was validated and is being followed.
	Connected(addr string)
	// Bootstrapping reports the progress of a snapshot in bytes; total is 0
	// while it is not known.
	Bootstrapping(done, total int64)
	// Heard says that the upstream was heard from just now: its newest
	// revision, and its compaction revision.
	Heard(head, compacted int64)
	// Applied says that the replica has applied rev.
	Applied(rev int64)
	// Lost says that the connection ended, or could not be made, and why.
	Lost(err error)
}
