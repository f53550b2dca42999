package certs

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DefaultPoll is how often files are read again unless Config says otherwise.
// Three small files cost nothing, and reading them sees what modification times
// do not: symbolic links that were switched, as in mounted secrets.
const DefaultPoll = 5 * time.Second

// Config holds what [Credentials] and [Listener] may be given; the zero Config is good.
type Config struct {
	Poll    time.Duration         // between two looks at the files; zero means DefaultPoll
	Dialled bool                  // the node is dialled: its certificate must be good for that even if its role is mirror
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil: a caller may register them itself
}

func (c Config) resolve() (Config, error) {
	if c.Poll < 0 {
		return c, fmt.Errorf("Poll: %s is negative", c.Poll)
	}
	if c.Poll == 0 {
		c.Poll = DefaultPoll
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// keepReading calls reload every Poll until ctx ends, and returns its cause. reload
// reports whether something new took effect; an error means that what was good
// stays, and is logged once. what is being read and kept go into the log.
func (c Config) keepReading(ctx context.Context, what string, reload func() (bool, error), kept func() []any) error {
	tick := time.NewTicker(c.Poll)
	defer tick.Stop()
	var warned string
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		changed, err := reload()
		switch {
		case err == nil:
			warned = ""
			if changed {
				c.Log.Info(what+" reloaded", kept()...)
			}
		case err.Error() != warned:
			warned = err.Error()
			c.Log.Warn("new "+what+" refused, last good ones kept", append(kept(), "err", err)...)
		}
	}
}
