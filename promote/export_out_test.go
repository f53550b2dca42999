package promote_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
)

// copyOf opens the replica in dir and takes a snapshot of it, for the test's time.
func copyOf(t *testing.T, dir string) heliograph.Snapshot {
	t.Helper()
	st := openStore(t, dir)
	snap, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		snap.Release()
		closeStore(t, st)
	})
	return snap
}

func exportConfig(t *testing.T, kind promote.Kind) promote.ExportConfig {
	return promote.ExportConfig{Out: filepath.Join(t.TempDir(), "out"), Kind: kind, Cluster: "prod-eu", PeerURLs: localURLs(t, 1)}
}

// An exported snapshot is restored by etcdutl, hash and all.
func TestExportSnapshot(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	c := source.Client(t)
	etcdtest.Fill(t, c, 500)
	dir := t.TempDir()
	follow(t, source, dir)
	late := grant(t, c, 700) // which the replica may not know
	put(t, c, "late", "1")
	rev := put(t, c, "late", "2", clientv3.WithLease(late))
	follow(t, source, dir)

	cfg := exportConfig(t, promote.Snapshot)
	fork, err := promote.Export(t.Context(), copyOf(t, dir), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if fork.Revision != rev || fork.EtcdID != 0 {
		t.Errorf("fork %+v, want revision %d", fork, rev)
	}
	restored := filepath.Join(t.TempDir(), "restored")
	urls := localURLs(t, 2)
	peer, url := urls[0], urls[1]
	tool(t, "etcdutl", "snapshot", "restore", cfg.Out, "--data-dir="+restored, "--name=r0",
		"--initial-cluster=r0="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster-token=other")
	startMember(t, "r0", restored, url, peer)
	r := client(t, url, "")
	waitRevision(t, r, rev)
	if got, want := hash(t, r, url, rev), sourceSum(t, source, rev); got != want {
		t.Errorf("HashKV of the restored is %+v, of the source %+v", got, want)
	}
	if got, err := r.TimeToLive(t.Context(), late); err != nil || got.GrantedTTL <= 0 {
		t.Errorf("the late lease: %+v, %v", got, err)
	}
	if got := put(t, r, "new", "1"); got != rev+1 {
		t.Errorf("first write has revision %d, want %d", got, rev+1)
	}
	// A flipped byte is found.
	flipped := filepath.Join(t.TempDir(), "flipped")
	replace(t, cfg.Out, flipped)
	b, err := os.ReadFile(flipped)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(flipped, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), etcdtest.Binary(t, "etcdutl"), "snapshot", "restore", flipped,
		"--data-dir="+filepath.Join(t.TempDir(), "flipped")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "sha256") {
		t.Errorf("a damaged snapshot was restored: %v\n%s", err, out)
	}
}

// An exported data directory is started by etcd as it is.
func TestExportDataDir(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, source.Client(t), 500)
	dir := t.TempDir()
	follow(t, source, dir)
	cfg := exportConfig(t, promote.DataDir)
	cfg.Name = "e0"
	fork, err := promote.Export(t.Context(), copyOf(t, dir), cfg)
	if err != nil {
		t.Fatal(err)
	}
	url := localURLs(t, 1)[0]
	startMember(t, "e0", cfg.Out, url, cfg.PeerURLs[0])
	c := client(t, url, "")
	waitRevision(t, c, rev)
	if got, want := hash(t, c, url, rev), sourceSum(t, source, rev); got != want {
		t.Errorf("HashKV of the exported is %+v, of the source %+v", got, want)
	}
	status, err := c.Status(t.Context(), url)
	if err != nil || heliograph.EtcdID(status.Header.ClusterId) != fork.EtcdID {
		t.Errorf("cluster id %x, %v; want %s", status.Header.ClusterId, err, fork.EtcdID)
	}
	if got := put(t, c, "new", "1"); got != rev+1 {
		t.Errorf("first write has revision %d, want %d", got, rev+1)
	}
}

// The replica's own file is not touched, and nothing is left after a failure.
func TestExportFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fillReplica(t, dir, 500, 64, false)
	before := tree(t, filepath.Join(dir, "default.db"))
	snap := copyOf(t, dir)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx  context.Context
		snap heliograph.Snapshot
		cfg  func(*promote.ExportConfig)
		want string
	}{
		"no name":     {cfg: func(c *promote.ExportConfig) { c.Out = "" }, want: "Out is empty"},
		"bad kind":    {cfg: func(c *promote.ExportConfig) { c.Kind = "tar" }, want: "Kind"},
		"bad cluster": {cfg: func(c *promote.ExportConfig) { c.Cluster = "a b" }, want: "Config.Cluster"},
		"exists":      {cfg: func(c *promote.ExportConfig) { c.Out = filepath.Dir(c.Out) }, want: "exists already"},
		"no folder":   {cfg: func(c *promote.ExportConfig) { c.Out = filepath.Join(c.Out, "x", "y") }, want: "there is no folder "},
		"not a place": {cfg: func(c *promote.ExportConfig) { c.Out = filepath.Join(dir, "default.db", "x") }, want: "not a directory: choose a folder that uid "},
		"ended":       {ctx: cancelled, want: "context canceled"},
		"wrong sum":   {snap: bent{Snapshot: snap, at: snap.Size() / 2}, want: "SHA-256"},
		"disk fails":  {snap: bent{Snapshot: snap, at: snap.Size() / 2, err: errors.New("input/output error")}, want: "input/output error"},
	} {
		for _, kind := range []promote.Kind{promote.Snapshot, promote.DataDir} {
			t.Run(name+"/"+string(kind), func(t *testing.T) {
				cfg := exportConfig(t, kind)
				folder := filepath.Dir(cfg.Out)
				ctx := t.Context()
				if test.ctx != nil {
					ctx = test.ctx
				}
				from := snap
				if test.snap != nil {
					from = test.snap
				}
				if test.cfg != nil {
					test.cfg(&cfg)
				}
				_, err := promote.Export(ctx, from, cfg)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if _, misused := errors.AsType[*promote.MisuseError](err); misused != (test.cfg != nil) {
					t.Errorf("a mistake of who asked: %v, %v", misused, err)
				}
				if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
	}
	if after := tree(t, filepath.Join(dir, "default.db")); after != before {
		t.Errorf("the replica was %s and is %s", before, after)
	}
}

// bent is a snapshot with a wrong byte, or an error, in one place.
type bent struct {
	heliograph.Snapshot
	at  int64
	err error
}

func (b bent) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Snapshot.ReadAt(p, off)
	if i := b.at - off; i >= 0 && i < int64(n) {
		if b.err != nil {
			return int(i), b.err
		}
		p[i] ^= 1
	}
	return n, err
}
