package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
)

// Config says what a node is. Cluster, DataDir and exactly one of Etcd and From
// are required, and Credentials wherever a connection to or from another node is
// made: with From or Listen.
type Config struct {
	Cluster  heliograph.ClusterID
	Database heliograph.DatabaseID // of a source node; zero means "default". A mirror takes it from From
	DataDir  string

	Etcd *Etcd               // the upstream of a source node
	From *heliograph.Address // the upstream of a mirror node

	Listen           string   // host:port (UDP) for mirrors; empty: none are served
	ListenClients    string   // host:port (TCP) for etcd clients; empty: none
	ListenAdmin      string   // host:port (TCP) for status and metrics; empty: the unix socket only
	ListenAdminTLS   string   // host:port (TCP) for the admin API over TLS, with changes by operators; empty: not served
	AdvertiseClients []string // URLs that etcd clients reach this node at; zero means ListenClients
	PeerURL          string   // where members will reach the etcd that the node may be promoted to; empty: see [Node.Plan]

	PromotedQuota   int64         // how big the promoted etcd's database may get, in bytes; zero: see promote.ServeConfig
	PromotedHistory time.Duration // what the promoted etcd keeps when it compacts by itself; zero: it does not

	Reads     Reads           // whom to let read
	ClientTLS *certs.Listener // TLS for etcd clients; nil: clear text

	Credentials *certs.Credentials
	// CredentialsErr is why there are no Credentials. Only a node that is promoted
	// already goes on without them: it talks to no other node any more.
	CredentialsErr error

	Allow          []string        // names of mirrors that may follow; empty: any with a certificate
	Mode           heliograph.Mode // zero means async
	History        time.Duration   // how much longer than the upstream to keep compacted history
	OnDivergence   OnDivergence    // zero means Stop
	VerifyInterval time.Duration   // between verifications; zero: only when asked

	Log *slog.Logger // nil discards
}

// Etcd says how a source node reaches its etcd.
type Etcd struct {
	Endpoints []string    // http(s)://host:port; at least one
	TLS       *tls.Config // nil for http endpoints
	Username  string      // empty: no authentication
	Password  string
}

func (c *Config) resolve() error {
	if _, err := heliograph.ParseClusterID(string(c.Cluster)); err != nil {
		return err
	}
	if c.DataDir == "" {
		return errors.New("a node needs a data directory")
	}
	if (c.Etcd == nil) == (c.From == nil) {
		return errors.New("a node needs exactly one upstream: an etcd or another node")
	}
	switch {
	case c.From != nil:
		c.Database = c.From.Database
	case c.Database == "":
		c.Database = heliograph.DefaultDatabase
	}
	if _, err := heliograph.ParseDatabaseID(string(c.Database)); err != nil {
		return err
	}
	if c.Credentials != nil {
		if err := c.checkIdentity(c.Credentials.Identity()); err != nil {
			return err
		}
		if c.ListenAdminTLS != "" && !c.Credentials.Dialled() {
			return errors.New("the admin API over TLS needs credentials that were loaded for being dialled")
		}
	}
	if c.Mode == "" {
		c.Mode = heliograph.Async
	}
	if _, err := heliograph.ParseMode(string(c.Mode)); err != nil {
		return err
	}
	if c.History < 0 {
		return fmt.Errorf("history %s: want a positive duration, or 0 to follow the upstream's compactions", c.History)
	}
	if err := c.checkReads(); err != nil {
		return err
	}
	if c.OnDivergence == "" {
		c.OnDivergence = Stop
	}
	if _, err := ParseOnDivergence(string(c.OnDivergence)); err != nil {
		return fmt.Errorf("on divergence: %w", err)
	}
	c.AdvertiseClients = slices.Clone(c.AdvertiseClients)
	for i, u := range c.AdvertiseClients {
		c.AdvertiseClients[i] = strings.TrimSuffix(u, "/")
		if _, err := parseURL(c.AdvertiseClients[i]); err != nil {
			return fmt.Errorf("advertised client URL: %w", err)
		}
	}
	if c.PeerURL = strings.TrimSuffix(c.PeerURL, "/"); c.PeerURL != "" {
		if _, err := parsePeerURL(c.PeerURL); err != nil {
			return fmt.Errorf("peer URL: %w", err)
		}
	}
	if c.PromotedQuota < 0 {
		return fmt.Errorf("promoted quota %d: want a number of bytes, or 0 for 8 GiB or twice the database", c.PromotedQuota)
	}
	if c.PromotedHistory < 0 {
		return fmt.Errorf("promoted auto-compaction %s: want a positive duration, or 0 to compact only when asked", c.PromotedHistory)
	}
	if c.VerifyInterval < 0 {
		return fmt.Errorf("verify interval %s: want a positive duration, or 0 to verify only when asked", c.VerifyInterval)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// checkPeers refuses a node that talks to other nodes and cannot show itself.
func (c *Config) checkPeers() error {
	switch {
	case c.Credentials != nil || c.From == nil && c.Listen == "" && c.ListenAdminTLS == "":
		return nil
	case c.CredentialsErr != nil:
		return c.CredentialsErr
	}
	return errors.New("a node that talks to other nodes needs a certificate")
}

// checkIdentity refuses a certificate with which no peer would accept this
// node: better at once and here than later and over there.
func (c *Config) checkIdentity(id heliograph.Identity) error {
	role := c.role()
	if id.Cluster != c.Cluster {
		return fmt.Errorf("the certificate is for cluster %q, but --cluster says %q: correct --cluster, "+
			"or issue a certificate with helio certs issue --cluster %s --role %s", id.Cluster, c.Cluster, c.Cluster, role)
	}
	if id.Role == role || role == heliograph.RoleMirror && id.Role.Observes() {
		return nil
	}
	what := map[heliograph.Role]string{
		heliograph.RoleSource: "a source node needs the role source",
		heliograph.RoleMirror: "a mirror needs the role mirror or relay",
		heliograph.RoleRelay:  "a mirror that serves further mirrors (--listen) needs the role relay",
	}[role]
	return fmt.Errorf("the certificate of %q has the role %s, but %s: "+
		"issue one with helio certs issue --cluster %s --role %s", id.Name, id.Role, what, c.Cluster, role)
}

func (c *Config) role() heliograph.Role {
	switch {
	case c.Etcd != nil:
		return heliograph.RoleSource
	case c.Listen != "":
		return heliograph.RoleRelay
	}
	return heliograph.RoleMirror
}

func (c *Config) identity() identity {
	id := identity{Role: c.role(), Cluster: c.Cluster, Database: c.Database}
	if id.Role == heliograph.RoleRelay {
		// Whether a mirror serves others too is a setting, not what it is.
		id.Role = heliograph.RoleMirror
	}
	if c.From != nil {
		id.Source = c.From.Cluster
	}
	return id
}
