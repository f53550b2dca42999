package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
)

// Limits of the admin API, whose callers are probes and people.
const (
	adminRequestTimeout = 10 * time.Second
	adminStopTimeout    = time.Second
	adminHeaderBytes    = 16 << 10
)

// serveAdmin answers on lis until ctx ends. Whoever reaches it may read status,
// metrics and probes. A verification costs scans of whole databases: it is for this
// machine. What changes the node is for those who may open the socket.
func (n *Node) serveAdmin(ctx context.Context, lis net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(n.Status()); err != nil {
			n.cfg.Log.Debug("status not sent", "err", err)
		}
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		for _, s := range n.Status() {
			if s.Status != heliograph.Following {
				http.Error(w, fmt.Sprintf("%s/%s is %s: %s", s.Cluster, s.Name, s.Status, s.Why), http.StatusServiceUnavailable)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{
		Timeout: adminRequestTimeout, MaxRequestsInFlight: 4,
	}))
	mux.HandleFunc("POST /v1/verify", func(w http.ResponseWriter, r *http.Request) {
		if !local(lis, r) {
			http.Error(w, "verify through the admin socket, or from this machine", http.StatusForbidden)
			return
		}
		// A scan may take minutes: the waiting is not the caller's slowness.
		limit := time.Now().Add(verifyTimeout + adminRequestTimeout)
		control := http.NewResponseController(w)
		// The read deadline, too: when it passes, the request counts as given up.
		if err := errors.Join(control.SetReadDeadline(limit), control.SetWriteDeadline(limit)); err != nil {
			n.cfg.Log.Debug("verify without a longer deadline", "err", err)
		}
		answer(w, n.Verify(r.Context()))
	})
	mux.HandleFunc("POST /v1/resync", func(w http.ResponseWriter, r *http.Request) {
		if lis.Addr().Network() != "unix" {
			http.Error(w, "resync through the admin socket only: --admin unix:DATA-DIR/"+socketFile, http.StatusForbidden)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), adminRequestTimeout)
		defer cancel()
		if err := n.Resync(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: adminRequestTimeout, ReadTimeout: adminRequestTimeout, WriteTimeout: 2 * adminRequestTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: adminHeaderBytes,
	}
	var g errgroup.Group
	served := make(chan struct{})
	g.Go(func() error {
		defer close(served)
		if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-served:
			return nil
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminStopTimeout)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			return srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// local reports whether a request comes from this machine.
func local(lis net.Listener, r *http.Request) bool {
	if lis.Addr().Network() == "unix" {
		return true
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && from.Addr().Unmap().IsLoopback()
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // who has gone need not be told
}
