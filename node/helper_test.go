package node_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/store"
)

const (
	waitLimit = 30 * time.Second
	stopLimit = 5 * time.Second
	nobody    = "http://127.0.0.1:1" // nothing listens there
)

// pki is the folder of a CA.
type pki string

func newPKI(t *testing.T) pki {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	if err := certs.Init(dir, ""); err != nil {
		t.Fatal(err)
	}
	return pki(dir)
}

func (p pki) credentials(t *testing.T, cluster heliograph.ClusterID, role heliograph.Role) *certs.Credentials {
	t.Helper()
	files, err := certs.Issue(certs.IssueConfig{Dir: string(p), Cluster: cluster, Role: role, Name: string(cluster) + "-" + string(role)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := certs.Load(files, certs.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// source is the configuration of a source node of prod-us.
func (p pki) source(t *testing.T, endpoint string) node.Config {
	t.Helper()
	return node.Config{
		Cluster: "prod-us", DataDir: filepath.Join(t.TempDir(), "us"), Etcd: &node.Etcd{Endpoints: []string{endpoint}},
		Listen: "127.0.0.1:0", Credentials: p.credentials(t, "prod-us", heliograph.RoleSource),
	}
}

// mirror is the configuration of a mirror in prod-eu of the node at host.
func (p pki) mirror(t *testing.T, host string) node.Config {
	t.Helper()
	return node.Config{
		Cluster: "prod-eu", DataDir: filepath.Join(t.TempDir(), "eu"),
		From:        &heliograph.Address{Hosts: []string{host}, Cluster: "prod-us", Database: heliograph.DefaultDatabase},
		Credentials: p.credentials(t, "prod-eu", heliograph.RoleMirror),
	}
}

func open(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	n, err := node.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// run runs n until the function that it returns is called, which also closes n.
func run(t *testing.T, n *node.Node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }() // waited for by stop
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(stopLimit):
			t.Errorf("Run did not end within %s", stopLimit)
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// waitFor waits for a condition and asks for it in short intervals.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not %s within %s", what, waitLimit)
		}
	}
}

func waitAt(t *testing.T, n *node.Node, rev int64) {
	t.Helper()
	waitFor(t, "following", func() bool {
		s := n.Status()[0]
		return s.Status == heliograph.Following && s.AppliedRevision >= rev
	})
}

// get asks a node's admin API: at an address, or through the socket at a path.
func get(t *testing.T, at, path string) (code int, body string) {
	t.Helper()
	network := "tcp"
	if strings.Contains(at, "/") {
		network = "unix"
	}
	client := &http.Client{Timeout: waitLimit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, at)
		},
	}}
	resp, err := client.Get("http://helio" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// journal keeps what a node logs.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// snapshots returns how many snapshots the node has installed.
func (j *journal) snapshots() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.b.String(), `msg="snapshot installed" part=store`)
}

func hashOf(t *testing.T, n *node.Node, rev int64) store.HashKV {
	t.Helper()
	h, err := n.HashKV(t.Context(), rev)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
