package etcd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph/heliograph"
)

// Config holds what an Upstream needs. Endpoints, Cluster, Database and Replica
// are required; every other field works at its zero value.
type Config struct {
	Endpoints []string    // client URLs of the members; one is followed at a time
	TLS       *tls.Config // for https endpoints; nil trusts the system's roots
	Username  string      // of a user with the role root; empty if auth is off
	Password  string

	Cluster  heliograph.ClusterID  // the name of the cluster that the node speaks for
	Database heliograph.DatabaseID // the name of the database within it
	Replica  heliograph.Replica    // where batches go
	Reporter heliograph.Reporter   // who hears how it fares; nil for nobody

	// HeldBytes is about how much may wait in memory for earlier revisions to
	// be complete. One response of etcd, and the revision that is being
	// received (at most heliograph.MaxBatchBytes), come on top. Zero means
	// 64 MiB.
	HeldBytes int64
	// PollInterval is how often etcd's revision is asked for. Zero means 500 ms.
	PollInterval time.Duration
	// Silence is how long etcd may owe an answer, or events that it must have,
	// until another member is tried. Zero means 5 s.
	Silence time.Duration
	// LearnInterval is how often etcd is asked for what no watch tells: its
	// leases, and whether it has access control on. Zero means 5 s.
	LearnInterval time.Duration
	// SnapshotSilence is how long a snapshot may stand still until it is
	// given up. Zero means 30 s.
	SnapshotSilence time.Duration
	// RetryBase and RetryCap bound the random pause before a new connection:
	// up to RetryBase at first, doubling up to RetryCap. Zero means 500 ms
	// and 30 s.
	RetryBase, RetryCap time.Duration

	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil registers none
}

// resolve returns a copy in which every field has its final value.
func (c Config) resolve() (Config, error) {
	if len(c.Endpoints) == 0 {
		return c, errors.New("config: Endpoints is empty: name at least one member of etcd")
	}
	for i, ep := range c.Endpoints {
		if ep == "" {
			return c, fmt.Errorf("config: Endpoints[%d] is empty", i)
		}
	}
	if c.Username == "" && c.Password != "" {
		return c, errors.New("config: Password is set without Username")
	}
	if c.Username != "" && c.Password == "" {
		return c, errors.New("config: Username is set without Password")
	}
	if _, err := heliograph.ParseClusterID(string(c.Cluster)); err != nil {
		return c, fmt.Errorf("config: Cluster: %w", err)
	}
	if _, err := heliograph.ParseDatabaseID(string(c.Database)); err != nil {
		return c, fmt.Errorf("config: Database: %w", err)
	}
	if c.Replica == nil {
		return c, errors.New("config: Replica is nil")
	}
	if c.Reporter == nil {
		c.Reporter = nobody{}
	}
	if c.HeldBytes == 0 {
		c.HeldBytes = 64 << 20
	}
	if c.HeldBytes < 0 {
		return c, fmt.Errorf("config: HeldBytes is %d", c.HeldBytes)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"PollInterval", &c.PollInterval, 500 * time.Millisecond},
		{"Silence", &c.Silence, 5 * time.Second},
		{"LearnInterval", &c.LearnInterval, 5 * time.Second},
		{"SnapshotSilence", &c.SnapshotSilence, 30 * time.Second},
		{"RetryBase", &c.RetryBase, 500 * time.Millisecond},
		{"RetryCap", &c.RetryCap, 30 * time.Second},
	} {
		if *d.value < 0 {
			return c, fmt.Errorf("config: %s is %s", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	c.RetryCap = max(c.RetryCap, c.RetryBase)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// nobody is the Reporter of a Config without one.
type nobody struct{}

func (nobody) Connecting(string)          {}
func (nobody) Connected(string)           {}
func (nobody) Bootstrapping(int64, int64) {}
func (nobody) Heard(int64, int64)         {}
func (nobody) Applied(int64)              {}
func (nobody) Lost(error)                 {}
