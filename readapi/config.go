package readapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/version"
)

// Config holds what a Server needs. Replica, ReadIndex, Source and MemberName
// are required; every other field works at its zero value. The functions may be
// called concurrently.
type Config struct {
	// Replica is what is served.
	Replica Replica
	// ReadIndex returns the source's current revision, asked for during the
	// call. It obeys its context, which always has a deadline.
	ReadIndex func(ctx context.Context) (int64, error)
	// UpstreamAlive returns nil while the source can be reached, else why
	// not. It does not block. Nil: always reachable.
	UpstreamAlive func() error
	// Staleness returns for how long the replica may have been behind the
	// source; ok is false if that is not known. It does not block. Nil:
	// never known, so that reads that set a maximum are refused.
	Staleness func() (d time.Duration, ok bool)
	// Source names the place that accepts writes, as a phrase: "cluster
	// prod-us (10.0.0.5:7400)".
	Source func() string
	// Version returns the source etcd's version; nil or "": that of the etcd
	// this package is built with.
	Version func() string
	// AuthStatus returns what the API says of the source's access control:
	// whether it is on, and its revision. Nil: off, at revision 1.
	AuthStatus func() (enabled bool, revision uint64)
	// Admit decides whether a caller may use the API at all (health checks
	// excepted), before the request is looked at, and again every
	// LeaderInterval while a stream of the caller's is open. It does not
	// block. Its error reaches the caller as PermissionDenied, or as
	// Unavailable if it wraps [ErrUndecided]. See [ClientCertificate]. Nil:
	// everyone.
	Admit func(ctx context.Context) error

	MemberName       string   // this node; its etcd member id is derived from it
	AdvertiseClients []string // URLs under which clients reach this node

	MaxRequestBytes   int           // largest request; also the size at which watch fragments and range chunks end; zero means 1.5 MiB
	MaxTxnOps         int           // compares or operations in one Txn; zero means 128
	MaxStreams        uint32        // concurrent calls on one connection; zero means 1,000
	MaxConnections    int           // zero means 10,000; those beyond are closed at once
	MaxWatches        int           // on the whole node; zero means 100,000
	WatchBufferBytes  int64         // events waiting for one watch stream's client; zero means 8 MiB
	WatchBuffersBytes int64         // events waiting for all watch streams together; zero means 256 MiB
	ReadTimeout       time.Duration // longest wait for a read index or a revision; zero means 7s, as etcd
	ProgressInterval  time.Duration // between progress notifications of an idle watch; zero means 10m, as etcd
	LeaderInterval    time.Duration // between looks at UpstreamAlive for open watches, which end at the third failure in a row; zero means 1s
	StallTimeout      time.Duration // for which a client may take nothing of a snapshot; zero means 1m
	StopTimeout       time.Duration // for calls under way when Serve's context ends; zero means 2s

	// TLS is for a server; which protocols are offered is not its matter. Nil:
	// clear text.
	TLS     *tls.Config
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil: none registered
}

// requestOverheadBytes is what gRPC's limit exceeds MaxRequestBytes by, as in etcd.
const requestOverheadBytes = 512 << 10

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Replica == nil:
		return c, errors.New("readapi: Config.Replica is missing")
	case c.ReadIndex == nil:
		return c, errors.New("readapi: Config.ReadIndex is missing")
	case c.Source == nil:
		return c, errors.New("readapi: Config.Source is missing")
	case c.MemberName == "":
		return c, errors.New("readapi: Config.MemberName is missing")
	case c.ProgressInterval > 0 && c.ProgressInterval < minProgressInterval:
		return c, fmt.Errorf("readapi: Config.ProgressInterval is %v: at least %v is needed", c.ProgressInterval, minProgressInterval)
	}
	if c.UpstreamAlive == nil {
		c.UpstreamAlive = func() error { return nil }
	}
	if c.Staleness == nil {
		c.Staleness = func() (time.Duration, bool) { return 0, false }
	}
	if c.AuthStatus == nil {
		c.AuthStatus = func() (bool, uint64) { return false, 1 }
	}
	if c.Admit == nil {
		c.Admit = func(context.Context) error { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	orDefault(&err, "MaxRequestBytes", &c.MaxRequestBytes, 3<<19)
	orDefault(&err, "MaxTxnOps", &c.MaxTxnOps, 128)
	orDefault(&err, "MaxStreams", &c.MaxStreams, 1000)
	orDefault(&err, "MaxConnections", &c.MaxConnections, 10_000)
	orDefault(&err, "MaxWatches", &c.MaxWatches, 100_000)
	orDefault(&err, "WatchBufferBytes", &c.WatchBufferBytes, 8<<20)
	orDefault(&err, "WatchBuffersBytes", &c.WatchBuffersBytes, 256<<20)
	orDefault(&err, "ReadTimeout", &c.ReadTimeout, 7*time.Second)
	orDefault(&err, "ProgressInterval", &c.ProgressInterval, 10*time.Minute)
	orDefault(&err, "LeaderInterval", &c.LeaderInterval, time.Second)
	orDefault(&err, "StallTimeout", &c.StallTimeout, time.Minute)
	orDefault(&err, "StopTimeout", &c.StopTimeout, 2*time.Second)
	return c, err
}

// orDefault gives *v its default if it is zero and reports the first negative one.
func orDefault[T int | int64 | uint32 | time.Duration](err *error, field string, v *T, def T) {
	if *v == 0 {
		*v = def
	}
	if *v < 0 && *err == nil {
		*err = fmt.Errorf("readapi: Config.%s is negative", field)
	}
}

// etcdVersion is the version that Status tells.
func (c Config) etcdVersion() string {
	if c.Version != nil {
		if v := c.Version(); v != "" {
			return v
		}
	}
	return version.Version
}
