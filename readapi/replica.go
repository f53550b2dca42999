package readapi

import (
	"context"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
)

// Replica is what the API reads from. All methods may be called concurrently.
type Replica interface {
	// KV returns the store to read and watch; its write methods are never
	// called. Before the first snapshot the error is heliograph.ErrNotReady.
	// The same instance survives a later snapshot of the same origin; when
	// another instance is returned, watches on the old one are ended.
	KV() (mvcc.WatchableKV, error)
	// Origin returns where the bytes come from.
	Origin() heliograph.Origin
	// Applied returns the last applied revision. KV shows it by then.
	Applied() int64
	// Changed returns a channel that is closed at the next change of Applied
	// or of KV. Take the channel, then look, then wait.
	Changed() <-chan struct{}
	// Size returns the database's size and the part in use, in bytes.
	Size() (total, inUse int64)
	// HashKV returns etcd's HashKV of all revisions up to rev (0: the
	// current one). It scans the store.
	HashKV(ctx context.Context, rev int64) (hash uint32, compactRev, currentRev int64, err error)
	// Hash returns etcd's hash of the whole file and its revision. It scans
	// the store.
	Hash(ctx context.Context) (hash uint32, rev int64, err error)
	// Snapshot returns a consistent copy, which the caller releases.
	Snapshot(ctx context.Context) (heliograph.Snapshot, error)
	// Lease returns the granted TTL in seconds and the attached keys of a
	// lease. The keys are the caller's.
	Lease(id int64) (grantedTTL int64, keys [][]byte, ok bool)
	// Leases returns the ids of all leases.
	Leases() []int64
}
