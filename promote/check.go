package promote

import "fmt"

// Check returns why a promotion at revision rev, bumped by bump, would fail in dir
// for want of room, on the disk or above the revision. [Promote] checks it again.
func Check(dir string, rev, bump int64) error {
	if bump < 0 || rev > maxRevision || bump > maxRevision-rev {
		return fmt.Errorf("revision %d cannot be bumped by %d: want 0 to %d", rev, bump, max(0, maxRevision-rev))
	}
	return checkFree(dir, minFree)
}
