package promote

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph"
)

// Check returns why a promotion at revision rev, bumped by bump, would fail in dir:
// for want of room, on the disk or above the revision, or of the right to write
// there, or because there is a promoted etcd already. [Promote] checks it again.
func Check(dir string, database heliograph.DatabaseID, rev, bump int64) error {
	if err := CheckBump(rev, bump); err != nil {
		return err
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("user %d cannot write to %s (%w): give it the right to", os.Getuid(), dir, err)
	}
	if err := checkNoEtcd(filesOf(dir, database)); err != nil {
		return err
	}
	return checkFree(dir, minFree)
}

// CheckBump returns why revision rev cannot be bumped by bump.
func CheckBump(rev, bump int64) error {
	if bump < 0 || rev > maxRevision || bump > maxRevision-rev {
		return fmt.Errorf("revision %d cannot be bumped by %d: want 0 to %d", rev, bump, max(0, maxRevision-rev))
	}
	return nil
}
