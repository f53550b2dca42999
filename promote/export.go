package promote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/zaplog"
)

// Kind says what Export writes.
type Kind string

// The kinds.
const (
	// Snapshot is a file with a SHA-256 at its end, as etcdctl snapshot save
	// writes it; etcdutl snapshot restore makes data directories of it, for
	// clusters of any size.
	Snapshot Kind = "snapshot"
	// DataDir is a data directory of a cluster of one, ready for etcd.
	DataDir Kind = "datadir"
)

// ExportConfig says what to export. Out and Cluster are required; every other
// field works at its zero value, and those that Config has too mean the same.
type ExportConfig struct {
	Out  string // file or folder, which must not exist yet
	Kind Kind   // empty means Snapshot

	Cluster       heliograph.ClusterID
	Database      heliograph.DatabaseID
	Name          string   // DataDir only
	PeerURLs      []string // DataDir only
	Token         string
	BumpRevision  int64
	LeaseTTL      time.Duration
	OutdatedUsers bool

	Log *slog.Logger // nil discards
}

// Export writes what promotion would make of the replica that snap is a copy of,
// for an etcd that is run by other means. The replica goes on as it is. Out
// appears whole and durable, or not at all; what is being written is beside it,
// with ".partial" at the end of its name. Nothing is left behind after an error. What
// is wrong with cfg is a *[MisuseError].
func Export(ctx context.Context, snap heliograph.Snapshot, cfg ExportConfig) (heliograph.Fork, error) {
	if cfg.Out == "" {
		return heliograph.Fork{}, misuse("export: ExportConfig.Out is empty")
	}
	if cfg.Kind == "" {
		cfg.Kind = Snapshot
	}
	if cfg.Kind != Snapshot && cfg.Kind != DataDir {
		return heliograph.Fork{}, misuse("export: ExportConfig.Kind %.20q: want %q or %q", cfg.Kind, Snapshot, DataDir)
	}
	promotion, err := Config{
		Dir: filepath.Dir(cfg.Out), Database: cfg.Database, Cluster: cfg.Cluster, Name: cfg.Name, PeerURLs: cfg.PeerURLs,
		Token: cfg.Token, BumpRevision: cfg.BumpRevision, LeaseTTL: cfg.LeaseTTL, OutdatedUsers: cfg.OutdatedUsers, Log: cfg.Log,
	}.resolve()
	if err != nil {
		return heliograph.Fork{}, misuse("export: %w", err)
	}
	if err := checkOut(cfg.Out); err != nil {
		return heliograph.Fork{}, err
	}
	e := export{cfg: promotion, kind: cfg.Kind, out: cfg.Out, partial: cfg.Out + ".partial", snap: snap}
	fork, err := e.run(ctx)
	if errors.Is(err, fs.ErrPermission) {
		err = misuse("%w: %s", err, mayWrite())
	}
	if err != nil {
		return heliograph.Fork{}, errors.Join(fmt.Errorf("export to %s: %w", cfg.Out, err), os.RemoveAll(e.partial))
	}
	return fork, nil
}

// checkOut refuses a name that is taken, or that nothing can be written at.
func checkOut(out string) error {
	for _, path := range []string{out, out + ".partial"} {
		switch there, err := exists(path); {
		case err != nil:
			return misuse("export to %s: %w: %s", out, err, mayWrite())
		case there:
			return misuse("export: %s exists already: remove it, or choose another name", path)
		}
	}
	dir := filepath.Dir(out)
	if there, err := exists(dir); err == nil && !there {
		return misuse("export to %s: there is no folder %s: make it, or choose another", out, dir)
	}
	return nil
}

func mayWrite() string {
	return fmt.Sprintf("choose a folder that uid %d of this machine may write to", os.Getuid())
}

type export struct {
	cfg          Config
	kind         Kind
	out, partial string
	snap         heliograph.Snapshot
}

func (e *export) run(ctx context.Context) (heliograph.Fork, error) {
	if err := checkFree(e.cfg.Dir, e.snap.Size()+minFree); err != nil {
		return heliograph.Fork{}, err
	}
	lg := zaplog.New(e.cfg.Log)
	m, err := newMember(lg, e.cfg.Name, e.cfg.PeerURLs, e.cfg.Token)
	if err != nil {
		return heliograph.Fork{}, err
	}
	id, db := m.etcdID(), e.partial
	if e.kind == DataDir {
		db = dbFile(e.partial)
		if err := m.writeLog(lg, e.partial); err != nil {
			return heliograph.Fork{}, err
		}
	} else {
		m, id = nil, 0
	}
	if err := e.copy(ctx, db); err != nil {
		return heliograph.Fork{}, err
	}
	var s survey
	if err := view(db, func(tx *bolt.Tx) (err error) {
		s, err = examine(tx, int64(e.cfg.LeaseTTL/time.Second))
		return err
	}); err != nil {
		return heliograph.Fork{}, err
	}
	if err := e.cfg.checkUsers(s); err != nil {
		return heliograph.Fork{}, err
	}
	fork, err := newFork(s, e.cfg, id)
	if err != nil {
		return heliograph.Fork{}, err
	}
	if err := (rewrite{survey: s, fork: fork, member: m}).run(db); err != nil {
		return heliograph.Fork{}, err
	}
	if e.kind == Snapshot {
		if err := appendSum(ctx, db); err != nil {
			return heliograph.Fork{}, err
		}
	}
	if err := errors.Join(syncTree(e.partial), ctx.Err()); err != nil {
		return heliograph.Fork{}, err
	}
	if err := move(e.partial, e.out); err != nil {
		return heliograph.Fork{}, err
	}
	e.cfg.Log.Info("exported", "kind", string(e.kind), "database", fork.Database, "rev", fork.Revision, "bump", fork.Bump,
		"origin", fork.Origin, "leases", len(s.leases), "leases_defaulted", s.defaulted)
	return fork, nil
}

// copy writes the snapshot to path and checks its SHA-256.
func (e *export) copy(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), &endingReader{ctx, io.NewSectionReader(e.snap, 0, e.snap.Size())})
	switch {
	case err != nil:
		return err
	case n != e.snap.Size():
		return fmt.Errorf("the copy ended after %d of %d bytes: %w", n, e.snap.Size(), io.ErrUnexpectedEOF)
	case [sha256.Size]byte(sum.Sum(nil)) != e.snap.SHA256():
		return errors.New("the copy has another SHA-256 than the snapshot: the disk or the memory is failing")
	}
	return nil
}

// appendSum appends the SHA-256 of the file to it. etcdutl knows by the size that
// there is one: pages are multiples of 512 bytes.
func appendSum(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	// Reads up to the end, and so leaves the file where Write appends.
	n, err := io.Copy(sum, &endingReader{ctx, f})
	if err != nil {
		return err
	}
	if n%512 != 0 {
		return fmt.Errorf("the database has %d bytes, which are no whole pages", n)
	}
	_, err = f.Write(sum.Sum(nil))
	return err
}

// endingReader reads until ctx ends.
type endingReader struct {
	ctx  context.Context //nolint:containedctx // io.Reader has no place for one
	from io.Reader
}

func (r *endingReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.from.Read(p)
}
