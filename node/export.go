package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
	"github.com/heliograph/heliograph/store"
)

// ExportOptions say what to export, see [promote.ExportConfig].
type ExportOptions struct {
	Out          string       `json:"out"`           // on the node's machine: a file or folder that does not exist, not in its data directory
	Kind         promote.Kind `json:"kind"`          // empty means promote.Snapshot
	PeerURL      string       `json:"peer_url"`      // of the member; promote.DataDir only
	BumpRevision int64        `json:"bump_revision"` // revisions to leave out after the last one
	Force        bool         `json:"force"`         // also what a verification has found unequal, or whose users are outdated

	By string `json:"-"` // who asks, for the audit
}

// errExportPromoted says how it is done where there is an etcd already.
var errExportPromoted = &conflictError{errors.New("this node is promoted: take a snapshot of its etcd, with etcdctl snapshot save")}

// Export writes what a promotion would make of the replica, for an etcd that is run
// by other means, and returns where it leaves the history that is mirrored. The node
// mirrors on.
func (n *Node) Export(ctx context.Context, opts ExportOptions) (heliograph.Fork, error) {
	m, _ := n.phase()
	if m == nil {
		return heliograph.Fork{}, errExportPromoted
	}
	fork, err := export(ctx, m.store, n.dir, opts, n.cfg.Log)
	args := []any{"out", opts.Out, "kind", string(opts.Kind), "rev", fork.Revision, "outcome", "exported"}
	if err != nil {
		args = append(args[:4], "outcome", "failed", "err", err)
	}
	n.audit("export", opts.By, args...)
	return fork, err
}

// ExportDir does the same with the data directory of a node that does not run. It
// takes the directory's lock meanwhile. log may be nil.
func ExportDir(ctx context.Context, dir string, opts ExportOptions, log *slog.Logger) (_ heliograph.Fork, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	id, err := readIdentity(dir)
	if errors.Is(err, os.ErrNotExist) {
		return heliograph.Fork{}, fmt.Errorf("%s is no node's data directory: it has no %s", dir, identityFile)
	}
	if err != nil {
		return heliograph.Fork{}, err
	}
	d, err := openDataDir(dir, id)
	if errors.Is(err, errDirInUse) {
		return heliograph.Fork{}, fmt.Errorf("data directory %s %w: let the node export by itself, with --admin unix:%s, or stop it", dir, errDirInUse, filepath.Join(dir, socketFile))
	}
	if err != nil {
		return heliograph.Fork{}, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	done, rec, err := promote.Recover(dir, id.Database, log)
	switch {
	case err != nil:
		return heliograph.Fork{}, err
	case done:
		return heliograph.Fork{}, fmt.Errorf("this node is promoted, and does not run: its etcd's data directory is %s, which etcd takes as it is; "+
			"or start it, and take a snapshot with etcdctl snapshot save", promote.EtcdDir(dir, rec.Database))
	}
	st, err := store.Open(store.Config{Dir: dir, Database: id.Database, Log: log})
	if err != nil {
		return heliograph.Fork{}, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	return export(ctx, st, d, opts, log)
}

func export(ctx context.Context, st *store.Store, dir *dataDir, opts ExportOptions, log *slog.Logger) (heliograph.Fork, error) {
	if !filepath.IsAbs(opts.Out) {
		return heliograph.Fork{}, &promote.MisuseError{Err: fmt.Errorf("export to %q: want an absolute path on the node's machine", opts.Out)}
	}
	inside, err := dir.holds(opts.Out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return heliograph.Fork{}, &promote.MisuseError{Err: fmt.Errorf("export to %s: there is no folder %s: make it, or choose another", opts.Out, filepath.Dir(opts.Out))}
	case err != nil:
		return heliograph.Fork{}, fmt.Errorf("export to %s: %w", opts.Out, err)
	case inside:
		return heliograph.Fork{}, &promote.MisuseError{Err: fmt.Errorf("export to %s: that is in the node's data directory %s, where a promotion puts its own: choose another place", opts.Out, dir.path)}
	}
	if err := st.Damaged(); err != nil {
		return heliograph.Fork{}, &conflictError{fmt.Errorf("export: %w: export another mirror", err)}
	}
	if err := promote.CheckBump(st.Applied(), opts.BumpRevision); err != nil {
		return heliograph.Fork{}, &promote.MisuseError{Err: fmt.Errorf("export: %w", err)}
	}
	if opts.PeerURL != "" {
		if _, err := parsePeerURL(opts.PeerURL); err != nil {
			return heliograph.Fork{}, &promote.MisuseError{Err: fmt.Errorf("export: --peer-url %w", err)}
		}
	}
	if d := st.Unequal(); d != nil && !opts.Force {
		return heliograph.Fork{}, &conflictError{fmt.Errorf("export: %w; if this is the good copy, --force exports it", d)}
	}
	snap, err := st.Snapshot(ctx)
	if errors.Is(err, heliograph.ErrNotReady) {
		return heliograph.Fork{}, &conflictError{fmt.Errorf("export: %w: wait until helio status says following", err)}
	}
	if err != nil {
		return heliograph.Fork{}, fmt.Errorf("export: %w", err)
	}
	defer snap.Release()
	cfg := promote.ExportConfig{
		Out: opts.Out, Kind: opts.Kind, Cluster: dir.id.Cluster, Database: dir.id.Database,
		BumpRevision: opts.BumpRevision, OutdatedUsers: opts.Force, Log: log.With("part", "export"),
	}
	if opts.PeerURL != "" {
		cfg.PeerURLs = []string{opts.PeerURL}
	}
	fork, err := promote.Export(ctx, snap, cfg)
	if errors.Is(err, promote.ErrOutdatedUsers) {
		err = &conflictError{fmt.Errorf("%w; --force exports them as they are here", err)}
	}
	return fork, err
}
