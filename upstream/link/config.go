package link

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// Reporter hears how the link fares. Calls come from several goroutines.
type Reporter interface {
	heliograph.Reporter
	// Upstream says what the source tells of itself: how old its data may be
	// (-1 if it cannot tell), and why it does not follow its own upstream
	// ("" if it does). It comes before the Heard of the same heartbeat.
	Upstream(staleness time.Duration, why string)
}

// Config holds what a Link needs. The first five fields are required; every
// other works at its zero value.
type Config struct {
	Address  heliograph.Address
	NodeID   string // of this node's data directory, at most 64 bytes; how cycles are found
	Replica  heliograph.Replica
	Reporter Reporter
	// TLS returns the configuration of the next dial, so that renewed
	// certificates are used at once. The source's certificate must be checked
	// by it; an empty ServerName becomes the address's cluster.
	TLS func() *tls.Config

	// Joined is called on every connection when the source has accepted the
	// mirror and the replica holds a part of the source's history: of the same
	// origin, or of one that it adopted, after the snapshot if one came. It must
	// not block for long. Nil is not called.
	Joined func()

	// Left returns the fork at which what the replica holds, or held, left the
	// history of origin; false if it did not. A source of that history has not
	// followed the promotion yet: it is passed over, and tried again. Nil never
	// says so.
	Left func(origin string) (heliograph.Fork, bool)

	Mode    heliograph.Mode       // zero means Async
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil registers none

	// Listen opens the local socket of one connection, which closes it. Nil
	// means an unused UDP port.
	Listen func() (net.PacketConn, error)

	DialTimeout   time.Duration // for a name's addresses, and for one handshake; zero means 5s
	AckTimeout    time.Duration // for the source's answer to the hello; zero means 5s
	ReadTimeout   time.Duration // for the answer to a read index; zero means 10s
	VerifyTimeout time.Duration // for the answer to a verification; zero means 15m
	Heartbeat     time.Duration // between heartbeats to the source; zero means 500ms
	Silence       time.Duration // without a frame from the source, after which it is left; zero means 5s
	Stall         time.Duration // without bulk though the source is ahead; zero means 10s
	SnapshotStall time.Duration // without bytes of a snapshot; zero means 30s
	AckDelay      time.Duration // between two acks; zero means 10ms

	BackoffBase time.Duration // bound of the first wait; zero means 500ms
	BackoffCap  time.Duration // bound of every later one; zero means 30s, and 5s is the most where nobody is there
	SlowRetry   time.Duration // least wait after a mistake in a configuration; zero means 30s
	Settled     time.Duration // a connection that lived this long starts the waits anew; zero means 10s

	// Receive windows in bytes. They grow from the first towards the others
	// with the product of bandwidth and delay.
	InitialWindow    uint64 // of a bulk stream; zero means 1 MiB
	StreamWindow     uint64 // of a bulk stream; zero means 32 MiB
	ConnectionWindow uint64 // of all streams; zero means 48 MiB
}

// maxNodeIDBytes is what a path on the wire has room for.
const maxNodeIDBytes = 64

// resolved returns the configuration with every default filled in.
func (c Config) resolved() (Config, error) {
	switch {
	case len(c.Address.Hosts) == 0 || c.Address.Cluster == "" || c.Address.Database == "":
		return c, errors.New("link: Config.Address needs hosts, a cluster and a database")
	case c.NodeID == "" || len(c.NodeID) > maxNodeIDBytes:
		return c, fmt.Errorf("link: Config.NodeID has %d bytes: want 1 to %d", len(c.NodeID), maxNodeIDBytes)
	case c.Replica == nil:
		return c, errors.New("link: Config.Replica is missing")
	case c.Reporter == nil:
		return c, errors.New("link: Config.Reporter is missing")
	case c.TLS == nil:
		return c, errors.New("link: Config.TLS is missing")
	}
	if c.Mode == "" {
		c.Mode = heliograph.Async
	}
	if _, err := heliograph.ParseMode(string(c.Mode)); err != nil {
		return c, fmt.Errorf("link: Config.Mode: %w", err)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("cluster", c.Address.Cluster)
	if c.Listen == nil {
		c.Listen = func() (net.PacketConn, error) { return net.ListenUDP("udp", nil) }
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"DialTimeout", &c.DialTimeout, 5 * time.Second},
		{"AckTimeout", &c.AckTimeout, 5 * time.Second},
		{"ReadTimeout", &c.ReadTimeout, 10 * time.Second},
		{"VerifyTimeout", &c.VerifyTimeout, 15 * time.Minute},
		{"Heartbeat", &c.Heartbeat, 500 * time.Millisecond},
		{"Silence", &c.Silence, 5 * time.Second},
		{"Stall", &c.Stall, 10 * time.Second},
		{"SnapshotStall", &c.SnapshotStall, 30 * time.Second},
		{"AckDelay", &c.AckDelay, 10 * time.Millisecond},
		{"BackoffBase", &c.BackoffBase, 500 * time.Millisecond},
		{"BackoffCap", &c.BackoffCap, 30 * time.Second},
		{"SlowRetry", &c.SlowRetry, 30 * time.Second},
		{"Settled", &c.Settled, 10 * time.Second},
	} {
		if *d.value < 0 {
			return c, fmt.Errorf("link: Config.%s is negative", d.name)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	for _, w := range []struct {
		value *uint64
		zero  uint64
	}{
		{&c.InitialWindow, 1 << 20},
		{&c.StreamWindow, 32 << 20},
		{&c.ConnectionWindow, 48 << 20},
	} {
		if *w.value == 0 {
			*w.value = w.zero
		}
	}
	// Control must have room beside a bulk stream that is not being read and
	// beside the first window of every other.
	if c.ConnectionWindow < c.StreamWindow+maxBulkStreams*c.InitialWindow {
		return c, fmt.Errorf("link: Config.ConnectionWindow of %d bytes leaves no room for control: want at least %d",
			c.ConnectionWindow, c.StreamWindow+maxBulkStreams*c.InitialWindow)
	}
	return c, nil
}

// tlsConfig returns the TLS configuration of one dial.
func (c *Config) tlsConfig() (*tls.Config, error) {
	t := c.TLS()
	if t == nil {
		return nil, errors.New("link: Config.TLS returned no configuration")
	}
	t = t.Clone()
	t.MinVersion = tls.VersionTLS13
	t.NextProtos = []string{wire.ALPN}
	t.ClientSessionCache = nil // a resumed session would skip checks of the certificate
	if t.ServerName == "" {
		t.ServerName = string(c.Address.Cluster)
	}
	return t, nil
}
