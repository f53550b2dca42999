package promote

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Only what a stop makes of a listener is lowered, and only while it stops.
func TestStopNoise(t *testing.T) {
	for _, test := range []struct {
		stopping bool
		msg      string
		err      error
		want     string
	}{
		{true, etcdServingEnded, fmt.Errorf("accept: %w", net.ErrClosed), "DEBUG"},
		{true, etcdServingEnded, http.ErrServerClosed, "DEBUG"},
		{true, etcdServingEnded, errors.New("mux: server closed"), "DEBUG"},
		{true, etcdServingEnded, errors.New("too many open files"), "ERROR"},
		{true, "failed to purge snap db file", net.ErrClosed, "ERROR"},
		{false, etcdServingEnded, net.ErrClosed, "ERROR"},
	} {
		for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
			var out strings.Builder
			h := &stopHandler{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}), new(atomic.Bool)}
			h.stopping.Store(test.stopping)
			r := slog.NewRecord(time.Now(), slog.LevelError, test.msg, 0)
			r.Add("err", test.err)
			if err := h.WithAttrs([]slog.Attr{slog.String("part", "etcd")}).Handle(t.Context(), r); err != nil {
				t.Error(err)
			}
			if test.want == "DEBUG" && level == slog.LevelInfo {
				if out.Len() != 0 {
					t.Errorf("%+v: got %q, want nothing", test, out.String())
				}
			} else if !strings.Contains(out.String(), "level="+test.want) {
				t.Errorf("%+v: got %q", test, out.String())
			}
		}
	}
}
