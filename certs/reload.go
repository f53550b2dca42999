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
// stays. said is told of the one, and of the other once.
func (c Config) keepReading(ctx context.Context, reload func() (bool, error), said func(refused error)) error {
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
				said(nil)
			}
		case err.Error() != warned:
			warned = err.Error()
			said(err)
		}
	}
}
