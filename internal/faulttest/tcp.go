package faulttest

import (
	"net"
	"sync"
	"testing"
)

// TCPRelay passes connections on to one server, until it is told otherwise. Its
// methods are safe for concurrent use.
//
//	passing ◄──► silent: connections stay open, new ones too, and no byte passes
//	   ▲ ──────► refusing: connections are closed at once
type TCPRelay struct {
	listener net.Listener
	server   string
	wg       sync.WaitGroup // of accept, and of every connection

	mu       sync.Mutex
	passing  chan struct{} // closed except in silence
	refusing bool
	conns    map[net.Conn]bool
}

// NewTCPRelay returns a relay to a server, host:port, that passes. It ends with the
// test.
func NewTCPRelay(tb testing.TB, server string) *TCPRelay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &TCPRelay{listener: l, server: server, passing: make(chan struct{}), conns: make(map[net.Conn]bool)}
	close(r.passing)
	r.wg.Go(r.accept)
	tb.Cleanup(func() {
		l.Close()
		r.Refuse()
		r.wg.Wait()
	})
	return r
}

// Addr returns the address to connect to instead of the server's.
func (r *TCPRelay) Addr() string { return r.listener.Addr().String() }

// Silence lets nothing through, neither way: a black hole.
func (r *TCPRelay) Silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusing = false
	select {
	case <-r.passing:
		r.passing = make(chan struct{})
	default:
	}
}

// Refuse closes every connection, and new ones as they come.
func (r *TCPRelay) Refuse() { r.restart(true) }

// Heal lets everything through again. Connections that a silence has found open are
// closed: what it has swallowed does not come back.
func (r *TCPRelay) Heal() { r.restart(false) }

func (r *TCPRelay) restart(refusing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	silent := false
	select {
	case <-r.passing:
	default:
		silent = true
		close(r.passing)
	}
	if r.refusing = refusing; !refusing && !silent {
		return
	}
	for c := range r.conns {
		c.Close()
	}
}

// wait returns when bytes may pass.
func (r *TCPRelay) wait() {
	r.mu.Lock()
	passing := r.passing
	r.mu.Unlock()
	<-passing
}

// track remembers a connection, and reports whether it may be used.
func (r *TCPRelay) track(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.refusing {
		r.conns[c] = true
	}
	return !r.refusing
}

// end closes a connection and forgets it.
func (r *TCPRelay) end(c net.Conn) {
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *TCPRelay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serve(client) })
	}
}

func (r *TCPRelay) serve(client net.Conn) {
	defer r.end(client)
	if !r.track(client) {
		return
	}
	r.wait()
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	defer r.end(server)
	if !r.track(server) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { r.pass(client, server) })
	r.pass(server, client)
	back.Wait()
}

// pass copies until one of the two ends, and ends both.
func (r *TCPRelay) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		r.wait()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
