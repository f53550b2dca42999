// Package heliotest runs real helio processes for tests: source nodes beside an
// etcd cluster, mirrors, and mirrors of mirrors, with certificates that helio
// itself has made.
package heliotest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/proctest"
)

// Waits of this package.
const (
	buildWait  = 10 * time.Minute
	answerWait = 30 * time.Second
	followWait = 2 * time.Minute
	tick       = 20 * time.Millisecond
)

var built struct {
	once sync.Once
	path string
	err  error
}

// Binary returns the path of a helio built from this tree, once per test binary.
func Binary(tb testing.TB) string {
	tb.Helper()
	built.once.Do(func() {
		dir, err := os.MkdirTemp("", "helio-test-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "helio")
		built.err = build(built.path)
	})
	if built.err != nil {
		tb.Fatal(built.err)
	}
	return built.path
}

// build makes a helio of this tree at path; flags are those of go build.
func build(path string, flags ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), buildWait)
	defer cancel()
	args := append([]string{"build", "-o", path}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "github.com/heliograph/heliograph/cmd/helio")...)
	cmd.Dir = tree()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build helio: %w\n%s", err, out)
	}
	return nil
}

// tree returns the folder that holds the module.
func tree() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Clean removes what Binary built; for a TestMain's end.
func Clean() {
	if built.path != "" {
		os.RemoveAll(filepath.Dir(built.path))
	}
}

// Run runs helio once and returns what it printed to stdout. A failure fails the
// test.
func Run(tb testing.TB, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), answerWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(tb), args...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("helio %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut.String())
	}
	return string(out)
}

// PKI is a folder with a CA, from which nodes get their certificates.
type PKI struct {
	tb     testing.TB
	dir    string
	binary string // of the nodes
}

// NewPKI makes a CA.
func NewPKI(tb testing.TB) *PKI {
	tb.Helper()
	p := &PKI{tb: tb, dir: filepath.Join(tb.TempDir(), "certs"), binary: Binary(tb)}
	Run(tb, "certs", "init", "--out", p.dir)
	return p
}

// With returns the same CA for nodes that belong to tb, such as a subtest's, and
// run another helio, such as that of [Mutant].
func (p *PKI) With(tb testing.TB, binary string) *PKI {
	return &PKI{tb: tb, dir: p.dir, binary: binary}
}

// Flags issues a certificate and returns the flags that name it.
func (p *PKI) Flags(cluster string, role heliograph.Role, name string) []string {
	p.tb.Helper()
	Run(p.tb, "certs", "issue", "--out", p.dir, "--cluster", cluster, "--role", string(role), "--name", name)
	base := filepath.Join(p.dir, name)
	return []string{"--cert", base + ".crt", "--key", base + ".key", "--ca", filepath.Join(p.dir, "ca.crt")}
}

// Node is a helio process. Its methods belong to the goroutine of the test.
type Node struct {
	*proctest.Process
	tb      testing.TB
	Cluster string
	Listen  string // for mirrors, host:port; empty if it serves none
	Clients string // etcd API, URL
	Admin   string // URL
	Peer    string // URL at which members reach its etcd once it is promoted
	DataDir string

	binary, command string
	flags           []string
}

// Source starts a source node beside an etcd.
func (p *PKI) Source(cluster string, etcd []string, args ...string) *Node {
	p.tb.Helper()
	n := p.NewSource(cluster, etcd, args...)
	n.Start()
	return n
}

// NewSource returns a source node that does not run yet: its Start is all that is
// left to do.
func (p *PKI) NewSource(cluster string, etcd []string, args ...string) *Node {
	p.tb.Helper()
	n, flags := p.node(cluster, heliograph.RoleSource, true)
	n.prepare(p.binary, "source", append(append(flags, "--etcd", strings.Join(etcd, ",")), args...))
	return n
}

// Mirror starts a mirror of another node; with relay it serves mirrors too.
func (p *PKI) Mirror(cluster string, from *Node, relay bool, args ...string) *Node {
	p.tb.Helper()
	n := p.NewMirror(cluster, from, relay, args...)
	n.Start()
	return n
}

// NewMirror returns a mirror that does not run yet, see [PKI.NewSource].
func (p *PKI) NewMirror(cluster string, from *Node, relay bool, args ...string) *Node {
	p.tb.Helper()
	role := heliograph.RoleMirror
	if relay {
		role = heliograph.RoleRelay
	}
	n, flags := p.node(cluster, role, relay)
	n.prepare(p.binary, "mirror", append(append(flags, "--from", fmt.Sprintf("helio://%s/%s", from.Listen, from.Cluster)), args...))
	return n
}

func (p *PKI) node(cluster string, role heliograph.Role, serves bool) (*Node, []string) {
	p.tb.Helper()
	ports := proctest.FreePorts(p.tb, 4)
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	n := &Node{
		tb: p.tb, Cluster: cluster, DataDir: filepath.Join(p.tb.TempDir(), "data"),
		Clients: "http://" + addr(0), Admin: "http://" + addr(1), Peer: "http://" + addr(3),
	}
	flags := append(p.Flags(cluster, role, fmt.Sprintf("%s-%d", cluster, ports[0])),
		"--cluster", cluster, "--data-dir", n.DataDir, "--listen-clients", addr(0), "--listen-admin", addr(1),
		"--peer-url", n.Peer)
	listen := ""
	if serves {
		n.Listen = addr(2)
		listen = n.Listen
	}
	return n, append(flags, "--listen", listen)
}

func (n *Node) prepare(binary, command string, flags []string) {
	n.tb.Helper()
	log := filepath.Join(n.tb.TempDir(), n.Cluster+".log")
	n.binary, n.command, n.flags = binary, command, flags
	n.Process = proctest.New(n.tb, command+" "+n.Cluster, log, binary, append([]string{command}, flags...)...)
}

// Log returns what the node has printed, over all its lives.
func (n *Node) Log() string {
	n.tb.Helper()
	b, err := os.ReadFile(n.LogPath())
	if err != nil {
		n.tb.Fatal(err)
	}
	return string(b)
}

// Snapshots returns how many snapshots the node has installed, over all its
// lives.
func (n *Node) Snapshots() int {
	n.tb.Helper()
	return strings.Count(n.Log(), `msg="snapshot installed"`+" part=store")
}

// Status returns the node's status, or why there is none.
func (n *Node) Status() (heliograph.Status, error) {
	b, err := n.get("/v1/status")
	if err != nil {
		return heliograph.Status{}, err
	}
	var list []heliograph.Status
	if err := json.Unmarshal(b, &list); err != nil || len(list) != 1 {
		return heliograph.Status{}, fmt.Errorf("status of %s: %q: %w", n.Name(), b, err)
	}
	return list[0], nil
}

func (n *Node) get(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(n.tb.Context(), answerWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.Admin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s%s: %s: %s", n.Admin, path, resp.Status, b)
	}
	return b, err
}

// Metric returns the sum of all series of a metric.
func (n *Node) Metric(name string) float64 {
	n.tb.Helper()
	b, err := n.get("/metrics")
	if err != nil {
		n.tb.Fatal(err)
	}
	var sum float64
	found := false
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		fields := strings.Fields(rest)
		var v float64
		if _, err := fmt.Sscan(fields[len(fields)-1], &v); err != nil {
			n.tb.Fatalf("metric %q: %v", line, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		n.tb.Fatalf("%s has no metric %s", n.Name(), name)
	}
	return sum
}

// WaitStatus returns the first status that ok accepts. A node that exits, or none
// within limit, fails the test.
func (n *Node) WaitStatus(what string, limit time.Duration, ok func(heliograph.Status) bool) heliograph.Status {
	n.tb.Helper()
	deadline := time.Now().Add(limit)
	for {
		if err := n.Err(); err != nil {
			n.tb.Fatal(err)
		}
		s, err := n.Status()
		if err == nil && ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			n.tb.Fatalf("%s: not %s within %s: %+v, %v", n.Name(), what, limit, s, err)
		}
		time.Sleep(tick)
	}
}

// WaitFollowing waits until the node follows.
func (n *Node) WaitFollowing() heliograph.Status {
	n.tb.Helper()
	return n.WaitStatus("following", followWait, func(s heliograph.Status) bool { return s.Status == heliograph.Following })
}

// WaitApplied waits until the node has applied rev.
func (n *Node) WaitApplied(rev int64) heliograph.Status {
	n.tb.Helper()
	return n.WaitStatus(fmt.Sprintf("at revision %d", rev), followWait, func(s heliograph.Status) bool { return s.AppliedRevision >= rev })
}

// WaitCompacted waits until the node's compaction revision is rev.
func (n *Node) WaitCompacted(rev int64) {
	n.tb.Helper()
	n.WaitStatus(fmt.Sprintf("compacted at %d", rev), followWait, func(s heliograph.Status) bool { return s.CompactRevision == rev })
}

// Client returns a client of the node's etcd API, closed when the test ends.
func (n *Node) Client() *clientv3.Client {
	n.tb.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.Clients}, DialTimeout: answerWait, Logger: zap.NewNop()})
	if err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() { c.Close() })
	return c
}

// HashKV asks the node's etcd API.
func (n *Node) HashKV(rev int64) (hash uint32, compactRev int64) {
	n.tb.Helper()
	ctx, cancel := context.WithTimeout(n.tb.Context(), followWait)
	defer cancel()
	hash, compactRev, err := etcdtest.HashKV(ctx, n.Client(), n.Clients, rev)
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name(), err)
	}
	return hash, compactRev
}

// RequireEqual fails the test unless every node has etcd's HashKV at rev with the
// same compaction revision. It waits for the nodes to apply rev and to follow
// etcd's compaction first.
func RequireEqual(tb testing.TB, etcd *etcdtest.Cluster, rev int64, nodes ...*Node) {
	tb.Helper()
	want, compacted := etcd.HashKV(tb, rev)
	for _, n := range nodes {
		n.WaitApplied(rev)
		n.WaitCompacted(max(0, compacted))
		got, gotCompacted := n.HashKV(rev)
		if got != want || gotCompacted != compacted {
			tb.Fatalf("%s: HashKV %08x at revision %d, compacted at %d; etcd has %08x, compacted at %d",
				n.Name(), got, rev, gotCompacted, want, compacted)
		}
		tb.Logf("%s: HashKV %08x at revision %d, compacted at %d, equal to etcd's", n.Name(), got, rev, compacted)
	}
}
