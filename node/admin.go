package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminRoutes returns what is answered on lis. Whoever reaches it may read status,
// metrics and probes. A verification costs scans of whole databases: it is for this
// machine and for operators. What changes the node is for who [Node.operator] says.
func (n *Node) adminRoutes(lis net.Listener) http.Handler {
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
		if err := n.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{
		Timeout: adminRequestTimeout, MaxRequestsInFlight: 4,
	}))
	mux.HandleFunc("POST /v1/verify", func(w http.ResponseWriter, r *http.Request) {
		if !local(lis, r) {
			if _, err := n.operator(lis, r); err != nil {
				http.Error(w, "a verification reads whole databases: ask for it on the node's machine, or as its operator: "+err.Error(), http.StatusForbidden)
				return
			}
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
		by, err := n.operator(lis, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		var opts ResyncOptions
		if err := readOptions(w, r, &opts); err != nil && !errors.Is(err, io.EOF) { // none are needed
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), adminRequestTimeout)
		defer cancel()
		rev := n.Status()[0].AppliedRevision
		if err := n.Resync(ctx, opts); err != nil {
			outcome := "failed"
			if _, refused := errors.AsType[*OnlyCopyError](err); refused {
				outcome = "refused"
			}
			n.audit("resync", by, "rev", rev, "forced", opts.Force, "outcome", outcome, "err", err)
			http.Error(w, err.Error(), errorCode(err))
			return
		}
		n.audit("resync", by, "rev", rev, "forced", opts.Force, "outcome", "the replica is dropped")
		fmt.Fprintln(w, "ok")
	})
	n.promotionRoutes(mux, lis)
	return mux
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
