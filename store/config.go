package store

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph/heliograph"
)

// Config holds what a Store needs. Dir is required; every other field works at
// its zero value.
type Config struct {
	// Dir is the folder of the files, created with mode 0700 if it is missing.
	// Stores of other databases may share it.
	Dir string
	// Database names the files; empty means heliograph.DefaultDatabase.
	Database heliograph.DatabaseID
	// History is how long compaction stays behind the upstream's; zero
	// compacts as soon as the upstream has.
	History time.Duration
	// CommitInterval is the longest that an applied revision waits to become
	// durable; zero means 100ms.
	CommitInterval time.Duration
	// SpoolShare is how long a spooled snapshot is handed to further askers;
	// those who ask later get a newer one. Zero means 5 minutes.
	SpoolShare time.Duration
	// SpoolLinger is how long a snapshot that nobody uses waits for another
	// asker before its file is removed; zero removes it at once.
	SpoolLinger time.Duration
	// LockTimeout is how long Open waits for another process to let go of the
	// files; zero means 5s.
	LockTimeout time.Duration
	// MinFree is how many bytes of the disk stay free: below that nothing is
	// applied, received or spooled. Zero means 64 MiB.
	MinFree int64

	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil: none
}

// ErrNoSpace says that the disk is too full to go on. Nothing was changed; the
// call can be tried again when there is room.
var ErrNoSpace = errors.New("disk is nearly full")

func (c Config) resolve() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("store: Config.Dir is empty")
	}
	if c.Database == "" {
		c.Database = heliograph.DefaultDatabase
	}
	if _, err := heliograph.ParseDatabaseID(string(c.Database)); err != nil {
		return c, fmt.Errorf("store: Config.Database: %w", err)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"History", &c.History, 0},
		{"CommitInterval", &c.CommitInterval, 100 * time.Millisecond},
		{"SpoolShare", &c.SpoolShare, 5 * time.Minute},
		{"SpoolLinger", &c.SpoolLinger, 0},
		{"LockTimeout", &c.LockTimeout, 5 * time.Second},
	} {
		if *d.value < 0 {
			return c, fmt.Errorf("store: Config.%s is negative: %v", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if c.MinFree < 0 {
		return c, fmt.Errorf("store: Config.MinFree is negative: %d", c.MinFree)
	}
	if c.MinFree == 0 {
		c.MinFree = 64 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
