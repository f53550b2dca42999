package node_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
)

func TestConfigErrors(t *testing.T) {
	p := newPKI(t)
	from := &heliograph.Address{Hosts: []string{"127.0.0.1:1"}, Cluster: "prod-us", Database: "default"}
	etcd := &node.Etcd{Endpoints: []string{nobody}}
	for _, test := range []struct {
		name   string
		change func(*node.Config)
		want   string
	}{
		{"no cluster", func(c *node.Config) { c.Cluster = "" }, "cluster id is empty"},
		{"bad cluster", func(c *node.Config) { c.Cluster = "a/b" }, "use letters and digits"},
		{"no folder", func(c *node.Config) { c.DataDir = "" }, "needs a data directory"},
		{"no upstream", func(c *node.Config) { c.Etcd = nil }, "exactly one upstream"},
		{"two upstreams", func(c *node.Config) { c.From = from }, "exactly one upstream"},
		{"bad database", func(c *node.Config) { c.Database = "a..b" }, "two dots"},
		{"no certificate", func(c *node.Config) { c.Credentials = nil }, "needs a certificate"},
		{"bad mode", func(c *node.Config) { c.Mode = "fast" }, "want async or sync"},
		{"bad history", func(c *node.Config) { c.History = -time.Hour }, "want a positive duration"},
		{"bad quota", func(c *node.Config) { c.PromotedQuota = -1 }, "want a number of bytes"},
		{"bad auto-compaction", func(c *node.Config) { c.PromotedHistory = -1 }, "want a positive duration"},
		{"certificate of another cluster", func(c *node.Config) { c.Cluster = "prod-ap" },
			`the certificate is for cluster "prod-us", but --cluster says "prod-ap"`},
		{"source with a mirror's certificate", func(c *node.Config) { c.Credentials = p.credentials(t, "prod-us", "mirror") },
			"has the role mirror, but a source node needs the role source"},
		{"source with a relay's certificate", func(c *node.Config) { c.Credentials = p.credentials(t, "prod-us", "relay") },
			"has the role relay, but a source node needs the role source"},
		{"mirror with a source's certificate", func(c *node.Config) { c.Etcd, c.From, c.Listen = nil, from, "" },
			"has the role source, but a mirror needs the role mirror or relay"},
		{"mirror with an operator's certificate", func(c *node.Config) {
			c.Etcd, c.From, c.Listen = nil, from, ""
			c.Credentials = p.credentials(t, "prod-us", "operator")
		}, "has the role operator, but a mirror needs"},
		{"relay with a mirror's certificate", func(c *node.Config) {
			c.Etcd, c.From = nil, from
			c.Credentials = p.credentials(t, "prod-us", "mirror")
		}, "has the role mirror, but a mirror that serves further mirrors (--listen) needs the role relay: issue one with helio certs issue --cluster prod-us --role relay"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := p.source(t, nobody)
			cfg.Etcd = etcd
			test.change(&cfg)
			n, err := node.Open(cfg)
			if err == nil {
				n.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q", err, test.want)
			}
			if _, err := os.Stat(cfg.DataDir); cfg.DataDir != "" && err == nil {
				t.Error("a data directory was made nevertheless")
			}
		})
	}
}

// Roles that may do more than is asked of them are accepted.
func TestARelayMayBeAMirror(t *testing.T) {
	p := newPKI(t)
	cfg := p.mirror(t, "127.0.0.1:1")
	cfg.Credentials = p.credentials(t, "prod-eu", heliograph.RoleRelay)
	if err := open(t, cfg).Close(); err != nil {
		t.Error(err)
	}
	cfg.Listen = "127.0.0.1:0" // what was a mirror may become a relay
	if got := open(t, cfg).Status()[0].Role; got != heliograph.RoleRelay {
		t.Errorf("role %s", got)
	}
}
