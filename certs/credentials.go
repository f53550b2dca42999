package certs

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/heliograph/heliograph"
)

// Credentials is who a node is, to the peers it dials and those that dial it.
// Its methods may be called by any goroutine.
//
// Invariant: the identity never changes; a node that shall be another one is
// restarted.
type Credentials struct {
	files   Files
	cfg     Config
	current atomic.Pointer[material] // never nil
}

// Load reads and checks files. They must be a pair with exactly one identity,
// be valid now, and be signed by a CA of the CA file for what the role does, and
// for being dialled with cfg.Dialled.
// cfg.Metrics, if any, must not have Credentials yet.
func Load(files Files, cfg Config) (*Credentials, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	from, err := files.read()
	if err != nil {
		return nil, err
	}
	m, err := newMaterial(files, from, cfg.Dialled, time.Now())
	if err != nil {
		return nil, err
	}
	c := &Credentials{files: files, cfg: cfg}
	c.current.Store(m)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return c, nil
}

// Run reads the files again every Poll until ctx ends, and returns its cause.
// New files that pass the checks of [Load] and have the same identity take
// effect at the next handshake; others are warned of once, and the last good
// ones stay. At most one Run at a time.
func (c *Credentials) Run(ctx context.Context) error {
	return c.cfg.keepReading(ctx, c.reload, func(refused error) {
		log := c.cfg.Log.With("cluster", c.Identity().Cluster, "not_after", stamp(c.NotAfter()))
		if refused == nil {
			log.Info("certificates reloaded")
		} else {
			log.Warn("new certificates refused, last good ones kept", "err", refused)
		}
	})
}

// reload reads the files and adopts them if they are new and good.
func (c *Credentials) reload() (changed bool, err error) {
	from, err := c.files.read()
	if err != nil {
		return false, err
	}
	current := c.current.Load()
	if from.equal(current.from) {
		return false, nil
	}
	m, err := newMaterial(c.files, from, c.cfg.Dialled, time.Now())
	if err != nil {
		return false, err
	}
	if m.identity != current.identity {
		return false, fmt.Errorf("%s is now for %s, this node is %s: restart the node if that is meant",
			c.files.Cert, m.identity, current.identity)
	}
	c.current.Store(m)
	return true, nil
}

// Identity returns who the node is.
func (c *Credentials) Identity() heliograph.Identity { return c.current.Load().identity }

// Dialled reports whether the files were, and will be, checked to be good for being
// dialled.
func (c *Credentials) Dialled() bool { return c.cfg.Dialled || c.Identity().Role.Serves() }

// NotAfter returns when peers stop to accept the node's certificate: its own
// end, or that of the CA that signed it if that is earlier.
func (c *Credentials) NotAfter() time.Time { return c.current.Load().notAfter() }
