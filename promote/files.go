package promote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph"
)

// EtcdDir returns the data directory of the promoted etcd.
func EtcdDir(dir string, database heliograph.DatabaseID) string {
	return filepath.Join(dir, string(database)+".etcd")
}

// files are the paths of one promotion.
type files struct {
	dir      string // the node's data directory
	db       string // the replica's file
	lock     string // held by whoever has the replica open
	received string // a snapshot that the replica was receiving
	building string // EtcdDir before it has its name
	etcd     string // EtcdDir
}

func filesOf(dir string, database heliograph.DatabaseID) files {
	base := filepath.Join(dir, string(database))
	return files{
		dir:      dir,
		db:       base + ".db",
		lock:     base + ".lock",
		received: base + ".partial",
		building: base + ".etcd.partial",
		etcd:     EtcdDir(dir, database),
	}
}

// Within an etcd data directory.
func walDir(etcd string) string  { return filepath.Join(etcd, "member", "wal") }
func snapDir(etcd string) string { return filepath.Join(etcd, "member", "snap") }
func dbFile(etcd string) string  { return filepath.Join(snapDir(etcd), "db") }

// lockWait is how long to wait for a store that is just being closed.
const lockWait = 5 * time.Second

// lockReplica takes the lock that an open store holds. It goes with the process.
func (f files) lockReplica() (*fileutil.LockedFile, error) {
	deadline := time.Now().Add(lockWait)
	for {
		l, err := fileutil.TryLockFile(f.lock, os.O_WRONLY|os.O_CREATE, 0o600)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, fileutil.ErrLocked):
			return nil, fmt.Errorf("lock the replica: %w", err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("the replica is open (%s is locked): close it first", f.lock)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// move renames and makes the new name durable. Both are in folders of one file
// system.
func move(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(to)); err != nil {
		return err
	}
	return syncPath(filepath.Dir(from))
}

// writeFile replaces the file at path, durably and whole.
func writeFile(path string, b []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return move(tmp.Name(), path)
}

// syncPath makes a file, or the names in a folder, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncTree makes everything at and below path durable.
func syncTree(path string) error {
	return filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(p)
	})
}

// checkFree returns an error if less than need bytes of path's disk are free.
func checkFree(path string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", path, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free and %d MiB are needed: make room", path, free>>20, need>>20)
	}
	return nil
}
