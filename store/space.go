package store

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// freeSpace watches how much of the disk is free. It is not safe for concurrent
// use.
type freeSpace struct {
	dir  string
	keep int64 // bytes that must stay free

	free int64 // when last looked at
	at   time.Time
}

// spaceAge is how old a look at the disk may be.
const spaceAge = 100 * time.Millisecond

// check returns ErrNoSpace if writing n more bytes would leave less than what
// must stay free.
func (f *freeSpace) check(n int64) error {
	if time.Since(f.at) > spaceAge || f.free-n < f.keep {
		var st unix.Statfs_t
		if err := unix.Statfs(f.dir, &st); err != nil {
			return fmt.Errorf("free space of %s: %w", f.dir, err)
		}
		f.free, f.at = int64(st.Bavail)*st.Bsize, time.Now()
	}
	if f.free-n < f.keep {
		return fmt.Errorf("%w: %s has %d MiB free, %d MiB are needed and %d MiB must stay free",
			ErrNoSpace, f.dir, f.free>>20, n>>20, f.keep>>20)
	}
	return nil
}
