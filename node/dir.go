package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph"
)

// Names in a data directory, beside the store's.
const (
	identityFile = "node.json"
	lockFile     = "LOCK"
	socketFile   = "admin.sock"
)

// identity is what a data directory says of itself. It ties the directory to
// one node and one database, so that a flag that names another is noticed before
// it does harm.
type identity struct {
	NodeID   string                `json:"node_id"` // 16 hexadecimal digits
	Role     heliograph.Role       `json:"role"`
	Cluster  heliograph.ClusterID  `json:"cluster"`
	Database heliograph.DatabaseID `json:"database"`
	// Source is the cluster that a mirror follows: the last one whose history its
	// replica was proven to be part of.
	Source heliograph.ClusterID `json:"source,omitempty"`
}

// dataDir is an open data directory. Its lock is held until close.
type dataDir struct {
	path string
	id   identity // as it was opened
	lock *os.File

	mu     sync.Mutex
	source heliograph.ClusterID // identity.Source as it is now
}

// errDirInUse says that another process has the lock.
var errDirInUse = errors.New("is in use by another helio process")

// openDataDir creates the directory if need be, locks it, and checks that it
// belongs to want; want.NodeID is ignored. A mirror may be pointed at another source
// cluster: whether its replica can follow that is found out at the handshake.
func openDataDir(path string, want identity) (_ *dataDir, err error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s %w: stop it, or choose another --data-dir", path, errDirInUse)
		}
		return nil, fmt.Errorf("data directory %s: lock: %w", path, err)
	}
	got, err := readIdentity(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		got = want
		if got.NodeID, err = newNodeID(); err != nil {
			return nil, err
		}
		if err := writeIdentity(path, got); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	if err := got.check(path, want); err != nil {
		return nil, err
	}
	return &dataDir{path: path, id: got, lock: lock, source: got.Source}, nil
}

func (d *dataDir) close() error { return d.lock.Close() }

// holds reports whether a file or folder at path, which need not exist, is or would be
// within the data directory, by whatever name.
func (d *dataDir) holds(path string) (bool, error) {
	own, err := os.Stat(d.path)
	if err != nil {
		return false, err
	}
	at, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	for {
		info, err := os.Stat(at)
		if err != nil || os.SameFile(info, own) {
			return err == nil, err
		}
		if at == filepath.Dir(at) {
			return false, nil
		}
		at = filepath.Dir(at)
	}
}

// follows returns the cluster that the replica was last proven to follow.
func (d *dataDir) follows() heliograph.ClusterID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.source
}

// follow notes durably that the replica follows that cluster, and returns which it
// followed before.
func (d *dataDir) follow(source heliograph.ClusterID) (was heliograph.ClusterID, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if was = d.source; was == source {
		return was, nil
	}
	id := d.id
	id.Source = source
	if err := writeIdentity(d.path, id); err != nil {
		return was, err
	}
	d.source = source
	return was, nil
}

func (i identity) check(path string, want identity) error {
	tests := []struct{ what, flag, got, want string }{
		{"role", "the command", string(i.Role), string(want.Role)},
		{"cluster", "--cluster", string(i.Cluster), string(want.Cluster)},
		{"database", "--database or --from", string(i.Database), string(want.Database)},
	}
	for _, t := range tests {
		if t.got != t.want {
			return fmt.Errorf("data directory %s belongs to %s %q, but %s says %q: correct it, or choose another --data-dir",
				path, t.what, t.got, t.flag, t.want)
		}
	}
	return nil
}

func readIdentity(dir string) (identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return identity{}, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil || len(id.NodeID) != 16 {
		return identity{}, fmt.Errorf("%s is damaged (%v): restore it, or remove the data directory to bootstrap anew", path, err)
	}
	return id, nil
}

// writeIdentity writes the file whole or not at all.
func writeIdentity(dir string, id identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, identityFile+".*")
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, identityFile))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("data directory: write %s: %w", identityFile, err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func newNodeID() (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}
