package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
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

// serveAdmin answers status, metrics and probes on lis until ctx ends. All of it
// only reads, so anyone who reaches the listener may ask.
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
