package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
	"github.com/heliograph/heliograph/wire"
)

// Replica is what is served. All methods are safe for concurrent use.
type Replica interface {
	// Lineage returns where the bytes come from, and the forks on the way there;
	// zero without data.
	Lineage() heliograph.Lineage
	// Applied returns the newest revision; 0 without data.
	Applied() int64
	// Compacted returns the compaction revision; 0 if never compacted.
	Compacted() int64
	// Floor returns the revision above which the history is complete: that of
	// the compaction, or a higher one. It rises before anything is removed.
	Floor() int64
	// Generation rises whenever a snapshot replaces the contents, and when the
	// lineage changes, before anything of the new history is applied.
	Generation() int64
	// Changed returns a channel that is closed at the next change of any of
	// these. Take it, then read, then wait.
	Changed() <-chan struct{}
	// History visits the records of whole revisions from a revision on, until
	// maxBytes have been passed, at least one revision; it returns the last
	// revision visited, from-1 if there is none. key and value are valid
	// during the call, which must be quick. An error of visit ends it and is
	// returned. After heliograph.ErrCompacted what was visited must be
	// dropped.
	History(from int64, maxBytes int, visit func(key, value []byte) error) (last int64, err error)
	// History of a mirror is compared with what these return, see
	// session.History. They must be quick, and err where they cannot be.
	session.History
	// Snapshot returns a copy that is shared with others while it is in use,
	// and keeps the history above it until it is released. It blocks while
	// the copy is made.
	Snapshot(ctx context.Context) (heliograph.Snapshot, error)
	// LeasesSince returns how the origin's leases have changed since a call
	// that returned seq as next; 0, or a seq from too long ago, gets all.
	LeasesSince(seq uint64) (change heliograph.LeaseChange, next uint64)
	// Auth returns what is known of the origin's access control.
	Auth() (enabled bool, revision uint64, known bool)
}

// Upstream is what the node knows of its own upstream.
type Upstream struct {
	Head      int64         // the newest revision that it is known to have; 0 if none is
	Path      []string      // node ids from the origin's source node down to the upstream; empty beside etcd
	Staleness time.Duration // how old the node's data may be; -1 if it cannot tell
	Why       string        // why the node does not follow; "" if it does
}

// Config holds what a Server needs. Cluster, NodeID, Replica, TLS and Identify
// are required; every other field works at its zero value.
type Config struct {
	Cluster  heliograph.ClusterID
	Database heliograph.DatabaseID // zero means heliograph.DefaultDatabase
	NodeID   string                // identifies the node's data directory
	Replica  Replica

	// Upstream is asked for every hello and heartbeat; it must not block. Nil
	// knows nothing.
	Upstream func() Upstream
	// ReadIndex returns the newest revision of the origin. Nil refuses.
	ReadIndex func(ctx context.Context) (int64, error)
	// Verify compares this node's hash with etcd's. It may take minutes, and is
	// called again at any time: that calls share their work is its concern. Nil
	// cannot.
	Verify func(ctx context.Context) heliograph.Verification

	// TLS must require and verify client certificates, directly or through
	// GetConfigForClient.
	TLS *tls.Config
	// Identify returns who the peer is and when its certificate ends.
	Identify func(tls.ConnectionState) (heliograph.Identity, time.Time, error)
	Allow    []string // names of the mirrors that may follow; empty: every observer

	MaxMirrors    int   // connected at once; zero means 64
	MaxPerAddress int   // of them from one IP address; zero means MaxMirrors
	MaxSnapshots  int   // handed down at once; zero means 2
	WindowBytes   int64 // of entries sent and not acknowledged, per mirror; zero means 64 MiB
	RingBytes     int   // of encoded frames kept for the mirrors at the head; zero means 16 MiB

	HelloTimeout    time.Duration // from the connection to the hello; zero means 5s
	Heartbeat       time.Duration // between heartbeats; zero means 500ms
	Silence         time.Duration // longest without a frame from a mirror; zero means 10s
	Stall           time.Duration // longest without progress of a mirror that has something to do; zero means 30s
	InstallTimeout  time.Duration // longest that a mirror may take to install a snapshot; zero means 15m
	SnapshotWait    time.Duration // longest that a hello waits for a snapshot to be copied; zero means 3s
	ReadIndexWait   time.Duration // longest that a read index may take for a mirror that does not say how long it waits; zero means 5s
	VerifyWait      time.Duration // longest that a verification may take; zero means 15m
	ShutdownTimeout time.Duration // longest that Serve takes to stop; zero means 2s

	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil registers nothing
}

// maxNodeIDBytes is what a path on the wire has room for; a longer id would be
// cut there, and cycles missed.
const maxNodeIDBytes = 64

// withDefaults returns a checked copy with every field set.
func (c Config) withDefaults() (Config, error) {
	if c.Database == "" {
		c.Database = heliograph.DefaultDatabase
	}
	if _, err := heliograph.ParseClusterID(string(c.Cluster)); err != nil {
		return c, fmt.Errorf("source: Cluster: %w", err)
	}
	if _, err := heliograph.ParseDatabaseID(string(c.Database)); err != nil {
		return c, fmt.Errorf("source: Database: %w", err)
	}
	switch {
	case c.NodeID == "" || len(c.NodeID) > maxNodeIDBytes:
		return c, fmt.Errorf("source: NodeID has %d bytes: want 1 to %d", len(c.NodeID), maxNodeIDBytes)
	case c.Replica == nil:
		return c, errors.New("source: Replica is nil")
	case c.TLS == nil:
		return c, errors.New("source: TLS is nil")
	case c.TLS.GetConfigForClient == nil && c.TLS.ClientAuth != tls.RequireAndVerifyClientCert:
		return c, errors.New("source: TLS does not require and verify client certificates")
	case c.Identify == nil:
		return c, errors.New("source: Identify is nil")
	}
	if c.Upstream == nil {
		c.Upstream = func() Upstream { return Upstream{Staleness: -1} }
	}
	if c.ReadIndex == nil {
		c.ReadIndex = func(context.Context) (int64, error) {
			return 0, errors.New("this node cannot ask the origin")
		}
	}
	if c.Verify == nil {
		c.Verify = func(context.Context) heliograph.Verification {
			return heliograph.Unverified("this node cannot verify")
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.TLS = c.TLS.Clone()
	c.TLS.MinVersion = tls.VersionTLS13
	c.TLS.SessionTicketsDisabled = true // every connection proves its identity anew
	if !slices.Contains(c.TLS.NextProtos, wire.ALPN) {
		c.TLS.NextProtos = []string{wire.ALPN}
	}
	err := orDefault("MaxMirrors", &c.MaxMirrors, 64)
	if err != nil {
		return c, err
	}
	err = errors.Join(
		orDefault("MaxPerAddress", &c.MaxPerAddress, c.MaxMirrors),
		orDefault("MaxSnapshots", &c.MaxSnapshots, 2),
		orDefault("WindowBytes", &c.WindowBytes, 64<<20),
		orDefault("RingBytes", &c.RingBytes, 16<<20),
		orDefault("HelloTimeout", &c.HelloTimeout, 5*time.Second),
		orDefault("Heartbeat", &c.Heartbeat, 500*time.Millisecond),
		orDefault("Silence", &c.Silence, 10*time.Second),
		orDefault("Stall", &c.Stall, 30*time.Second),
		orDefault("InstallTimeout", &c.InstallTimeout, 15*time.Minute),
		orDefault("SnapshotWait", &c.SnapshotWait, 3*time.Second),
		orDefault("ReadIndexWait", &c.ReadIndexWait, 5*time.Second),
		orDefault("VerifyWait", &c.VerifyWait, 15*time.Minute),
		orDefault("ShutdownTimeout", &c.ShutdownTimeout, 2*time.Second),
	)
	return c, err
}

// orDefault sets a field that is zero; a negative one is an error.
func orDefault[T int | int64 | time.Duration](name string, field *T, value T) error {
	if *field < 0 {
		return fmt.Errorf("source: %s is %v: want a positive value, or 0 for %v", name, *field, value)
	}
	if *field == 0 {
		*field = value
	}
	return nil
}
