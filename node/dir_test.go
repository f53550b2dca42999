package node_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
)

// wantRefused opens a node, which must fail with want.
func wantRefused(t *testing.T, cfg node.Config, want string) {
	t.Helper()
	n, err := node.Open(cfg)
	if err == nil {
		n.Close()
		t.Fatalf("opened, want %q", want)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestDataDirBelongsToOneNode(t *testing.T) {
	p := newPKI(t)
	source := p.source(t, nobody)
	n := open(t, source)
	id := n.Status()[0].Node
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}

	other := p.mirror(t, "127.0.0.1:1")
	mirror := other
	other.DataDir = source.DataDir
	wantRefused(t, other, `belongs to role "source", but the command says "mirror"`)
	other = source
	other.Cluster, other.Credentials = "prod-ap", p.credentials(t, "prod-ap", heliograph.RoleSource)
	wantRefused(t, other, `belongs to cluster "prod-us", but --cluster says "prod-ap"`)
	other = source
	other.Database = "orders"
	wantRefused(t, other, `belongs to database "default", but --database or --from says "orders"`)

	open(t, mirror).Close()
	other = mirror
	other.From = &heliograph.Address{Hosts: mirror.From.Hosts, Cluster: mirror.From.Cluster, Database: "orders"}
	wantRefused(t, other, `belongs to database "default", but --database or --from says "orders"`)

	// It is still the node that it was, and another node is another.
	if got := open(t, source).Status()[0].Node; got != id || len(id) != 16 {
		t.Errorf("node id %q, was %q", got, id)
	}
	if got := open(t, mirror).Status()[0].Node; got == id {
		t.Errorf("two nodes are %q", id)
	}
}

// A mirror may be pointed at another cluster; its directory goes on to belong to the
// one before until the new one has been followed.
func TestPointingElsewhereChangesNothingYet(t *testing.T) {
	p := newPKI(t)
	mirror := p.mirror(t, "127.0.0.1:1")
	open(t, mirror).Close()
	path := filepath.Join(mirror.DataDir, "node.json")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mirror.From = &heliograph.Address{Hosts: mirror.From.Hosts, Cluster: "prod-ap", Database: "default"}
	open(t, mirror).Close()
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) || !strings.Contains(string(after), `"source": "prod-us"`) {
		t.Errorf("node.json is %s, %v; was %s", after, err, before)
	}
}

func TestDataDirIsForOneProcess(t *testing.T) {
	cfg := newPKI(t).source(t, nobody)
	n := open(t, cfg)
	wantRefused(t, cfg, "is in use by another helio process: stop it, or choose another --data-dir")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, cfg)
}

func TestDataDirIsPrivate(t *testing.T) {
	cfg := newPKI(t).source(t, nobody)
	n := open(t, cfg)
	for path, want := range map[string]os.FileMode{
		cfg.DataDir:                             0o700,
		filepath.Join(cfg.DataDir, "node.json"): 0o600,
		filepath.Join(cfg.DataDir, "LOCK"):      0o600,
		n.Addrs().Socket:                        0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: mode %o, want %o", path, got, want)
		}
	}
}

func TestDamagedIdentityIsNotReplaced(t *testing.T) {
	cfg := newPKI(t).source(t, nobody)
	open(t, cfg).Close()
	path := filepath.Join(cfg.DataDir, "node.json")
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, cfg, "node.json is damaged")
}

// What fails half-way gives back what it has taken.
func TestFailedOpenReleasesEverything(t *testing.T) {
	p := newPKI(t)
	first := p.source(t, nobody)
	first.ListenClients, first.ListenAdmin = "127.0.0.1:0", "127.0.0.1:0"
	taken := open(t, first).Addrs()
	for _, test := range []struct {
		change func(*node.Config)
		want   string
	}{
		{func(c *node.Config) { c.Listen = taken.Mirrors }, "--listen " + taken.Mirrors + ": the port is in use"},
		{func(c *node.Config) { c.ListenClients = taken.Clients }, "--listen-clients " + taken.Clients + ": the port is in use"},
		{func(c *node.Config) { c.ListenAdmin = taken.Admin }, "--listen-admin " + taken.Admin + ": the port is in use"},
		{func(c *node.Config) { c.DataDir = filepath.Join(c.DataDir, strings.Repeat("x", 120)) }, "choose a shorter --data-dir"},
	} {
		cfg := p.source(t, nobody)
		failing := cfg
		test.change(&failing)
		wantRefused(t, failing, test.want)
		open(t, cfg).Close()
	}
}

func TestCloseTwice(t *testing.T) {
	n := open(t, newPKI(t).source(t, nobody))
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(n.Addrs().Socket); err == nil {
		t.Error("the admin socket is still there")
	}
}
