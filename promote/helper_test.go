package promote_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/proctest"
	"github.com/heliograph/heliograph/promote"
	"github.com/heliograph/heliograph/store"
	"github.com/heliograph/heliograph/upstream/etcd"
)

const (
	database = heliograph.DefaultDatabase
	patience = 30 * time.Second // for what takes a moment
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDirEnv); dir != "" {
		os.Exit(runChild(dir))
	}
	goleak.VerifyTestMain(m)
}

// config is the promotion that most tests make.
func config(dir string) promote.Config {
	return promote.Config{Dir: dir, Cluster: "prod-eu", By: "test"}
}

// follow brings the replica in dir up to the cluster's revision, which it returns.
func follow(tb testing.TB, c *etcdtest.Cluster, dir string) int64 {
	tb.Helper()
	return followAs(tb, c, dir, "")
}

// followAs follows with the password of the user root.
func followAs(tb testing.TB, c *etcdtest.Cluster, dir, password string) int64 {
	tb.Helper()
	st := openStore(tb, dir)
	defer closeStore(tb, st)
	cfg := etcd.Config{Endpoints: c.Endpoints(), Cluster: "prod-us", Database: database, Replica: st}
	if password != "" {
		cfg.Username, cfg.Password = "root", password
	}
	up, err := etcd.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	rev := c.Revision(tb)
	ctx, cancel := context.WithCancel(tb.Context())
	ended := make(chan error, 1)
	go func() { ended <- up.Run(ctx) }() // waited for below
	waitStore(tb, st, func() bool { return st.Applied() >= rev })
	cancel()
	<-ended
	return rev
}

func waitStore(tb testing.TB, st *store.Store, cond func() bool) {
	tb.Helper()
	deadline := time.After(patience)
	for {
		changed := st.Changed()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			tb.Fatalf("the replica is not there within %v: applied %d", patience, st.Applied())
		}
	}
}

func openStore(tb testing.TB, dir string) *store.Store {
	tb.Helper()
	st, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		tb.Fatal(err)
	}
	return st
}

func closeStore(tb testing.TB, st *store.Store) {
	tb.Helper()
	if err := st.Close(); err != nil {
		tb.Fatal(err)
	}
}

// sum is a HashKV and what it depends on.
type sum struct {
	hash      uint32
	compacted int64
}

// mirrorSum opens the replica in dir as a mirror would and hashes it at its head.
func mirrorSum(tb testing.TB, dir string) (sum, int64) {
	tb.Helper()
	st := openStore(tb, dir)
	defer closeStore(tb, st)
	h, err := st.HashKV(tb.Context(), 0)
	if err != nil {
		tb.Fatal(err)
	}
	return sum{h.Hash, h.CompactRevision}, h.HashRevision
}

func sourceSum(tb testing.TB, c *etcdtest.Cluster, rev int64) sum {
	tb.Helper()
	hash, compacted := c.HashKV(tb, rev)
	return sum{hash, compacted}
}

func mustPromote(tb testing.TB, cfg promote.Config) promote.Record {
	tb.Helper()
	rec, err := promote.Promote(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return rec
}

// server is a promoted etcd that runs in this process.
type server struct {
	*embed.Etcd
	tb     testing.TB
	url    string
	client *clientv3.Client
}

// serve starts the etcd of the promoted node in dir.
func serve(tb testing.TB, dir string, rec promote.Record) *server {
	tb.Helper()
	return serveDir(tb, promote.EtcdDir(dir, rec.Database), rec.Name, rec.PeerURLs)
}

func serveDir(tb testing.TB, dataDir, name string, peers []string) *server {
	tb.Helper()
	s := &server{tb: tb, url: localURLs(tb, 1)[0]}
	var err error
	s.Etcd, err = promote.Start(tb.Context(), promote.ServeConfig{
		DataDir: dataDir, Name: name, ClientURLs: []string{s.url}, PeerURLs: peers,
	})
	if err != nil {
		tb.Fatal(err)
	}
	s.client = client(tb, s.url, "")
	return s
}

func (s *server) stop() {
	s.client.Close()
	s.Etcd.Close()
}

// client returns a client that the test closes in the end.
func client(tb testing.TB, url, password string) *clientv3.Client {
	tb.Helper()
	cfg := clientv3.Config{Endpoints: []string{url}, DialTimeout: patience, Logger: zap.NewNop()}
	if password != "" {
		cfg.Username, cfg.Password = "root", password
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// hash returns the HashKV at rev of whoever serves at url.
func hash(tb testing.TB, c *clientv3.Client, url string, rev int64) sum {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	if _, err := etcdtest.Revision(ctx, c); err != nil {
		tb.Fatal(err)
	}
	h, compacted, err := etcdtest.HashKV(ctx, c, url, rev)
	if err != nil {
		tb.Fatal(err)
	}
	return sum{h, compacted}
}

// put writes and returns the revision of the write.
func put(tb testing.TB, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	resp, err := c.Put(ctx, key, value, opts...)
	if err != nil {
		tb.Fatalf("put: %v", err)
	}
	return resp.Header.Revision
}

func grant(tb testing.TB, c *clientv3.Client, ttl int64) clientv3.LeaseID {
	tb.Helper()
	resp, err := c.Grant(tb.Context(), ttl)
	if err != nil {
		tb.Fatalf("grant: %v", err)
	}
	return resp.ID
}

// localURLs returns n URLs on free ports.
func localURLs(tb testing.TB, n int) []string {
	tb.Helper()
	var urls []string
	for _, port := range proctest.FreePorts(tb, n) {
		urls = append(urls, fmt.Sprintf("http://127.0.0.1:%d", port))
	}
	return urls
}

// startMember runs the real etcd on a data directory, or as a member that joins.
func startMember(tb testing.TB, name, dataDir, clientURL, peerURL string, args ...string) *proctest.Process {
	tb.Helper()
	p := proctest.New(tb, name, filepath.Join(tb.TempDir(), name+".log"), etcdtest.Binary(tb, "etcd"), append([]string{
		"--name=" + name, "--data-dir=" + dataDir,
		"--listen-client-urls=" + clientURL, "--advertise-client-urls=" + clientURL,
		"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL,
		"--unsafe-no-fsync",
	}, args...)...)
	p.Start()
	return p
}

// waitRevision returns when c reads rev or more.
func waitRevision(tb testing.TB, c *clientv3.Client, rev int64) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 2*patience)
	defer cancel()
	for {
		got, err := etcdtest.Revision(ctx, c)
		if err == nil && got >= rev {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("revision %d, %v: not at %d", got, err, rev)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tool runs etcdctl or etcdutl and returns what it prints.
func tool(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, etcdtest.Binary(tb, name), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// copyTree copies the files of a data directory.
func copyTree(tb testing.TB, from, to string) {
	tb.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		tb.Fatal(err)
	}
}

// tree lists what is in dir, with sizes.
func tree(tb testing.TB, dir string) string {
	tb.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintf(&out, "%s %d\n", path[len(dir):], info.Size())
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out.String()
}
