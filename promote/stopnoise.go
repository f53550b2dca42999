package promote

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"

	"google.golang.org/grpc"
)

// etcdServingEnded is what etcd logs of each of its listeners that ends, also of
// those that it has closed itself to stop.
const etcdServingEnded = "setting up serving from embedded etcd failed."

// stopHandler lowers to debugging what etcd logs as an error because it was told to
// stop. Everything else passes as it is.
type stopHandler struct {
	slog.Handler
	stopping *atomic.Bool
}

func (h *stopHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.stopping.Load() && r.Message == etcdServingEnded && closedByItself(r) {
		if !h.Enabled(ctx, slog.LevelDebug) {
			return nil
		}
		r.Level = slog.LevelDebug
	}
	return h.Handler.Handle(ctx, r)
}

func (h *stopHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &stopHandler{h.Handler.WithAttrs(attrs), h.stopping}
}

func (h *stopHandler) WithGroup(name string) slog.Handler {
	return &stopHandler{h.Handler.WithGroup(name), h.stopping}
}

// closedByItself reports whether the error of r is that a listener or server is
// closed.
func closedByItself(r slog.Record) (closed bool) {
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		if !ok {
			return true
		}
		text := err.Error() // the errors of the multiplexer are known by it alone
		closed = errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) ||
			text == "mux: server closed" || text == "mux: listener closed"
		return false
	})
	return closed
}
