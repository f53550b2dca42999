package promote

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"time"

	"github.com/heliograph/heliograph"
)

// DefaultLeaseTTL is what a lease gets whose TTL the replica does not know: it was
// granted after the replica's snapshot was taken. An hour is long enough for an
// owner to find the promoted cluster and keep the lease alive, and short enough
// that what has no owner any more goes away.
const DefaultLeaseTTL = time.Hour

// DefaultPeerURL is where a member listens for others if nothing else is said.
const DefaultPeerURL = "http://127.0.0.1:2380"

// maxRevision leaves room for revisions to come, whatever is bumped.
const maxRevision = math.MaxInt64 / 2

// minFree is what a promotion and the start of etcd need: two segments of the
// write-ahead log at 64 MB each, and what the database grows by.
const minFree = 256 << 20

// Config says what a promotion is to make. Dir and Cluster are required; every
// other field works at its zero value.
type Config struct {
	Dir      string                // the node's data directory, whose store is closed
	Database heliograph.DatabaseID // empty means heliograph.DefaultDatabase
	Cluster  heliograph.ClusterID  // the node's own

	Name     string   // of the member; empty means Cluster
	PeerURLs []string // where other members will reach it; nil means [DefaultPeerURL]
	// Token makes the new etcd's cluster id its own. Empty means a random one;
	// another one must never have been used before.
	Token string
	// BumpRevision leaves out that many revisions after the last one, and marks
	// those before as compacted. It is needed when a tail was lost that somebody
	// may have read from the source: else a client would see a revision twice.
	BumpRevision int64
	// LeaseTTL is for leases whose TTL is not known; zero means DefaultLeaseTTL.
	// Whole seconds.
	LeaseTTL time.Duration

	// OutdatedUsers promotes although the users and roles in the file are known not
	// to be the source's any more: it may have turned access control on since.
	OutdatedUsers bool

	LastKnownRevision int64  // newest revision of the source that was heard of; 0 if unknown
	By                string // who asked, for the record

	Log *slog.Logger // nil discards
}

func (c Config) resolve() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("promote: Config.Dir is empty")
	}
	if c.Database == "" {
		c.Database = heliograph.DefaultDatabase
	}
	if _, err := heliograph.ParseDatabaseID(string(c.Database)); err != nil {
		return c, fmt.Errorf("promote: Config.Database: %w", err)
	}
	if c.LastKnownRevision < 0 {
		return c, fmt.Errorf("promote: Config.LastKnownRevision is negative: %d", c.LastKnownRevision)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	id, err := identity{c.Cluster, c.Name, c.PeerURLs, c.Token, c.BumpRevision, c.LeaseTTL}.resolve()
	if err != nil {
		return c, fmt.Errorf("promote: %w", err)
	}
	c.Name, c.PeerURLs, c.Token, c.LeaseTTL = id.name, id.peerURLs, id.token, id.leaseTTL
	return c, nil
}

// identity is what promotion and export have in common.
type identity struct {
	cluster  heliograph.ClusterID
	name     string
	peerURLs []string
	token    string
	bump     int64
	leaseTTL time.Duration
}

func (i identity) resolve() (identity, error) {
	if _, err := heliograph.ParseClusterID(string(i.cluster)); err != nil {
		return i, fmt.Errorf("Config.Cluster: %w", err)
	}
	if i.name == "" {
		i.name = string(i.cluster)
	}
	if _, err := heliograph.ParseName(i.name); err != nil {
		return i, fmt.Errorf("Config.Name: %w", err)
	}
	if i.peerURLs == nil {
		i.peerURLs = []string{DefaultPeerURL}
	}
	if _, err := parseURLs("Config.PeerURLs", i.peerURLs); err != nil {
		return i, err
	}
	if i.token == "" {
		i.token = rand.Text()
	}
	if len(i.token) > heliograph.MaxTokenBytes {
		return i, fmt.Errorf("Config.Token has %d bytes: at most %d are allowed", len(i.token), heliograph.MaxTokenBytes)
	}
	if i.bump < 0 || i.bump > maxRevision {
		return i, fmt.Errorf("Config.BumpRevision is %d: want 0 to %d", i.bump, int64(maxRevision))
	}
	switch {
	case i.leaseTTL == 0:
		i.leaseTTL = DefaultLeaseTTL
	case i.leaseTTL < time.Second || i.leaseTTL%time.Second != 0:
		return i, fmt.Errorf("Config.LeaseTTL is %v: want whole seconds", i.leaseTTL)
	}
	return i, nil
}

// parseURLs reads http(s)://host:port, at least one.
func parseURLs(what string, list []string) ([]url.URL, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%s is empty: want http(s)://host:port", what)
	}
	var out []url.URL
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" {
			return nil, fmt.Errorf("%s: %.200q: want http(s)://host:port", what, s)
		}
		out = append(out, *u)
	}
	return out, nil
}
