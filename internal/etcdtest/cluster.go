package etcdtest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph/internal/proctest"
)

// callWait is how long one call to etcd may take.
const callWait = 15 * time.Second

// Options say what cluster to start. The zero value is one member.
type Options struct {
	Members int      // zero means 1
	Args    []string // further flags of every member; they win over ours
	Fsync   bool     // members wait for the disk, as in production
	Binary  string   // path of another etcd than ours, such as an older one; empty means ours
	TLS     bool     // serve clients over TLS only, with certificates of its own
}

// Cluster is a running etcd cluster. Its methods belong to the goroutine of
// the test; the clients it gives are safe for concurrent use.
type Cluster struct {
	tb       testing.TB
	dir      string
	token    string
	members  []*Member
	initial  string // --initial-cluster
	certs    *certs // nil without TLS
	password string // of the user root, once auth is enabled
}

// Start starts a cluster and returns when every member answers. It is killed
// when the test ends; if the test has failed, the tails of its logs are shown.
func Start(tb testing.TB, opts Options) *Cluster {
	tb.Helper()
	n := max(1, opts.Members)
	c := &Cluster{tb: tb, dir: tb.TempDir(), token: rand.Text()}
	scheme := "http"
	if opts.TLS {
		scheme, c.certs = "https", newCerts(tb, c.dir)
	}
	binary := opts.Binary
	if binary == "" {
		binary = Binary(tb, "etcd")
	}
	ports := proctest.FreePorts(tb, 2*n)
	var initial []string
	for i := range n {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[2*i+1]))
	}
	c.initial = strings.Join(initial, ",")
	for i := range n {
		m := &Member{
			endpoint: fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[2*i]),
			peer:     fmt.Sprintf("http://127.0.0.1:%d", ports[2*i+1]),
			dataDir:  filepath.Join(c.dir, fmt.Sprintf("m%d", i)),
		}
		name := filepath.Base(m.dataDir)
		args := []string{
			"--name=" + name,
			"--data-dir=" + m.dataDir,
			"--listen-client-urls=" + m.endpoint,
			"--advertise-client-urls=" + m.endpoint,
			"--listen-peer-urls=" + m.peer,
			"--initial-advertise-peer-urls=" + m.peer,
			"--initial-cluster=" + c.initial,
			"--initial-cluster-token=" + c.token,
		}
		if !opts.Fsync {
			args = append(args, "--unsafe-no-fsync") // what SIGKILL leaves is the same
		}
		if c.certs != nil {
			args = append(args, "--client-cert-auth", "--trusted-ca-file="+c.certs.ca,
				"--cert-file="+c.certs.cert, "--key-file="+c.certs.key)
		}
		args = append(args, opts.Args...)
		m.Process = proctest.New(tb, name, filepath.Join(c.dir, name+".log"), binary, args...)
		c.members = append(c.members, m)
	}
	for _, m := range c.members {
		m.Start()
	}
	c.WaitReady(tb)
	return c
}

// WaitReady returns when every member that runs answers a linearizable read.
func (c *Cluster) WaitReady(tb testing.TB) {
	tb.Helper()
	for _, m := range c.members {
		if !m.Running() {
			continue
		}
		client, err := clientv3.New(c.config([]string{m.endpoint}))
		if err == nil {
			err = m.waitReady(tb.Context(), client)
			client.Close()
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// Member returns the i-th member.
func (c *Cluster) Member(i int) *Member { return c.members[i] }

// Members returns all members.
func (c *Cluster) Members() []*Member { return c.members }

// Endpoints returns the client URLs of all members.
func (c *Cluster) Endpoints() []string {
	var urls []string
	for _, m := range c.members {
		urls = append(urls, m.endpoint)
	}
	return urls
}

// TLS returns what a client needs; nil if the cluster serves without TLS.
func (c *Cluster) TLS() *tls.Config {
	if c.certs == nil {
		return nil
	}
	return c.certs.client.Clone()
}

// TLSFiles returns the paths of the CA's certificate and of a client's
// certificate and key, in PEM; empty if the cluster serves without TLS.
func (c *Cluster) TLSFiles() (ca, cert, key string) {
	if c.certs == nil {
		return "", "", ""
	}
	return c.certs.ca, c.certs.cert, c.certs.key
}

// EnableAuth creates the user root with that password and turns auth on. The
// cluster's own calls and its later clients log in as root.
func (c *Cluster) EnableAuth(tb testing.TB, password string) {
	tb.Helper()
	client := c.Client(tb)
	ctx, cancel := context.WithTimeout(tb.Context(), callWait)
	defer cancel()
	if _, err := client.UserAdd(ctx, "root", password); err != nil {
		tb.Fatalf("add user root: %v", err)
	}
	if _, err := client.UserGrantRole(ctx, "root", "root"); err != nil {
		tb.Fatalf("grant role root: %v", err)
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		tb.Fatalf("enable auth: %v", err)
	}
	c.password = password
}

func (c *Cluster) config(endpoints []string) clientv3.Config {
	cfg := clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: callWait,
		TLS:         c.TLS(),
		Logger:      zap.NewNop(),
	}
	if c.password != "" {
		cfg.Username, cfg.Password = "root", c.password
	}
	return cfg
}

// Client returns a client of all members. It is closed when the test ends.
func (c *Cluster) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(c.config(c.Endpoints()))
	if err != nil {
		tb.Fatalf("client: %v", err)
	}
	tb.Cleanup(func() { client.Close() })
	return client
}

// Etcdctl runs etcdctl against the cluster and returns what it prints to
// stdout. The test fails if it fails.
func (c *Cluster) Etcdctl(tb testing.TB, args ...string) string {
	tb.Helper()
	flags := []string{"--endpoints=" + strings.Join(c.Endpoints(), ",")}
	if c.certs != nil {
		flags = append(flags, "--cacert="+c.certs.ca, "--cert="+c.certs.cert, "--key="+c.certs.key)
	}
	if c.password != "" {
		flags = append(flags, "--user=root:"+c.password)
	}
	return run(tb, "etcdctl", append(flags, args...)...)
}

// Etcdctl runs etcdctl with arguments of the caller's, endpoints included, and
// returns what it prints to stdout. The test fails if it fails.
func Etcdctl(tb testing.TB, args ...string) string {
	tb.Helper()
	return run(tb, "etcdctl", args...)
}

// Save writes a snapshot of the first member to a file and returns its path.
func (c *Cluster) Save(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "snapshot.db")
	client, err := clientv3.New(c.config(c.Endpoints()[:1]))
	if err != nil {
		tb.Fatalf("client: %v", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), readyWait)
	defer cancel()
	if err := save(ctx, client, path); err != nil {
		tb.Fatalf("save a snapshot: %v", err)
	}
	return path
}

// Restore kills every member, replaces its data by the snapshot, as an operator
// would with `etcdutl snapshot restore`, and starts the cluster at the same
// addresses. The cluster keeps its id unless args say otherwise (such as
// --initial-cluster-token=other or --bump-revision=1000 --mark-compacted).
func (c *Cluster) Restore(tb testing.TB, snapshot string, args ...string) {
	tb.Helper()
	c.Wipe(tb)
	for _, m := range c.members {
		flags := append([]string{"snapshot", "restore", snapshot,
			"--name=" + m.Name(), "--data-dir=" + m.dataDir, "--initial-cluster=" + c.initial,
			"--initial-cluster-token=" + c.token, "--initial-advertise-peer-urls=" + m.peer}, args...)
		run(tb, "etcdutl", flags...)
	}
	c.Restart(tb)
}

// Wipe kills every member and removes its data. After [Cluster.Restart] it is
// an empty cluster with the same addresses and the same id.
func (c *Cluster) Wipe(tb testing.TB) {
	tb.Helper()
	for _, m := range c.members {
		m.Kill()
	}
	for _, m := range c.members {
		if err := os.RemoveAll(m.dataDir); err != nil {
			tb.Fatal(err)
		}
	}
}

// Restart starts every member again, killing it first if it runs, and returns
// when all answer.
func (c *Cluster) Restart(tb testing.TB) {
	tb.Helper()
	for _, m := range c.members {
		m.Kill()
	}
	for _, m := range c.members {
		m.Start()
	}
	c.WaitReady(tb)
}

// run runs one of the programs and returns what it prints to stdout.
func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), readyWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(tb, name), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}
