package node

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Limits of the admin API, whose callers are probes and people.
const (
	adminRequestTimeout = 10 * time.Second
	adminStopTimeout    = time.Second
	adminHeaderBytes    = 16 << 10
	adminConnections    = 256 // on each listener; those beyond are closed at once
)

// adminALPN is what the admin API is spoken in over TLS: what is meant for it is of
// no use to the link, and the other way round.
const adminALPN = "http/1.1"

// serveAdmin answers on lis until ctx ends, and returns when no request is being
// answered any more.
func (n *Node) serveAdmin(ctx context.Context, lis net.Listener) error {
	conns := adminConns{node: n, ends: make(map[net.Conn]*time.Timer)}
	srv := &http.Server{
		// What a browser was made to send by a page of somebody else is no request
		// of its user, whatever certificate it shows.
		Handler:           http.NewCrossOriginProtection().Handler(n.adminRoutes(lis)),
		ReadHeaderTimeout: adminRequestTimeout, ReadTimeout: adminRequestTimeout, WriteTimeout: 2 * adminRequestTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: adminHeaderBytes,
		ConnState:   conns.changed,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, peerKey{}, c) },
		ErrorLog:    slog.NewLogLogger(n.cfg.Log.Handler(), slog.LevelDebug),
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
			return srv.Close() // what it had accepted before it failed
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminStopTimeout)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			return srv.Close()
		}
		return nil
	})
	err := g.Wait()
	conns.served.Wait()
	return err
}

// adminConns are the open connections of one listener.
type adminConns struct {
	node   *Node
	served sync.WaitGroup // one for each, until nothing answers on it any more

	mu   sync.Mutex
	ends map[net.Conn]*time.Timer // when the peer's certificate expires; nil if it has shown none yet
}

// changed is [http.Server.ConnState].
func (a *adminConns) changed(conn net.Conn, state http.ConnState) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch state {
	case http.StateNew:
		a.served.Add(1)
		a.ends[conn] = nil
		if len(a.ends) > adminConnections {
			conn.Close()
		}
	case http.StateActive:
		secure, ok := conn.(*tls.Conn)
		if !ok || a.ends[conn] != nil {
			return
		}
		// The handshake has verified it: an error cannot be.
		if _, notAfter, err := a.node.cfg.Credentials.PeerIdentity(secure.ConnectionState()); err == nil {
			a.ends[conn] = time.AfterFunc(time.Until(notAfter), func() { conn.Close() })
		}
	case http.StateClosed, http.StateHijacked:
		if end := a.ends[conn]; end != nil {
			end.Stop()
		}
		delete(a.ends, conn)
		a.served.Done()
	}
}
