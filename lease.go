package heliograph

// MaxLeases is how many leases a replica knows at most. A source that tells of
// more than these is not believed: it is what bounds the memory.
const MaxLeases = 1 << 20

// MaxLeaseTTL is the longest that a lease can be granted for, in seconds. It is
// etcd's own limit.
const MaxLeaseTTL = 9_000_000_000

// Lease is a lease of the origin as it was granted. How much of its time is left
// only the origin knows: on a replica nothing expires.
type Lease struct {
	ID  int64
	TTL int64 // granted, in seconds
}

// LeaseChange says how the origin's leases have changed.
type LeaseChange struct {
	Reset   bool    // Put is all that there are: others have gone
	Put     []Lease // are there
	Removed []int64 // ids that are there no longer; they are in no Put
}

// Empty reports whether the change says nothing.
func (c LeaseChange) Empty() bool { return !c.Reset && len(c.Put) == 0 && len(c.Removed) == 0 }
