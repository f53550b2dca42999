package etcd_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// fault spoils what a server sends. It gets a piece of the stream that begins
// at offset, and may change it; it returns how much of it goes on. Less than
// all ends the connection, less than nothing silences it.
type fault func(offset int, p []byte) int

func cutAfter(n int) fault {
	return func(offset int, p []byte) int { return min(max(n-offset, 0), len(p)) }
}

func flipAt(n int) fault {
	return func(offset int, p []byte) int {
		if offset <= n && n < offset+len(p) {
			p[n-offset] ^= 0x10
		}
		return len(p)
	}
}

func stallAfter(n int) fault {
	return func(offset int, p []byte) int {
		if offset+len(p) > n {
			return -1
		}
		return len(p)
	}
}

// proxy passes TCP connections on to one server, with a fault on the way back.
type proxy struct {
	listener net.Listener
	server   string
	wg       sync.WaitGroup

	mu    sync.Mutex
	fault fault
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, server string, f fault) *proxy {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, server: u.Host, fault: f, conns: make(map[net.Conn]bool)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.drop()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) endpoint() string { return "http://" + p.listener.Addr().String() }

// inject sets the fault for connections from now on, and ends the present ones.
func (p *proxy) inject(f fault) {
	p.mu.Lock()
	p.fault = f
	p.mu.Unlock()
	p.drop()
}

func (p *proxy) heal() { p.inject(nil) }

func (p *proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) track(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			client.Close()
			continue
		}
		p.track(client)
		p.track(server)
		p.mu.Lock()
		f := p.fault
		p.mu.Unlock()
		p.wg.Go(func() {
			defer server.Close()
			io.Copy(server, client)
		})
		p.wg.Go(func() {
			defer client.Close()
			defer server.Close()
			back(client, server, f)
		})
	}
}

// back copies from the server to the client.
func back(client io.Writer, server io.Reader, f fault) {
	buf := make([]byte, 32<<10)
	silent := false
	for offset := 0; ; {
		n, err := server.Read(buf)
		piece := buf[:n]
		if f != nil && !silent {
			pass := f(offset, piece)
			if silent = pass < 0; !silent && pass < n {
				client.Write(piece[:pass])
				return
			}
		}
		offset += n
		if !silent {
			if _, err := client.Write(piece); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
