package faulttest

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// maxPacket is more than any UDP packet of QUIC.
const maxPacket = 64 << 10

// burst is what passes at once although there is a limit: enough for a handshake.
const burst = 16 << 10 // bytes

// UDPRelay passes packets between a server and its clients; lost ones are lost. Its
// methods are safe for concurrent use.
type UDPRelay struct {
	conn   *net.UDPConn // of the clients' side
	server *net.UDPAddr
	wg     sync.WaitGroup // of the readers

	toServer, toClients atomic.Bool  // whether packets are lost
	limit               atomic.Int64 // bytes per second to each client; 0: none

	mu     sync.Mutex
	closed bool
	ways   map[netip.AddrPort]*net.UDPConn // of each client to the server
}

// NewUDPRelay returns a relay to a server, host:port. It ends with the test.
func NewUDPRelay(tb testing.TB, server string) *UDPRelay {
	tb.Helper()
	addr, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	r := &UDPRelay{conn: conn, server: addr, ways: make(map[netip.AddrPort]*net.UDPConn)}
	r.wg.Go(r.receive)
	tb.Cleanup(r.close)
	return r
}

// Addr returns the address to send to instead of the server's.
func (r *UDPRelay) Addr() string { return r.conn.LocalAddr().String() }

// Lose loses what is sent to the server, to its clients, or both, from now on.
func (r *UDPRelay) Lose(toServer, toClients bool) {
	r.toServer.Store(toServer)
	r.toClients.Store(toClients)
}

// Limit loses what is sent to a client beyond so many bytes in a second. Zero ends
// the limit.
func (r *UDPRelay) Limit(bytesPerSecond int64) { r.limit.Store(bytesPerSecond) }

func (r *UDPRelay) close() {
	r.conn.Close()
	r.mu.Lock()
	r.closed = true
	for _, way := range r.ways {
		way.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// receive passes on what clients send.
func (r *UDPRelay) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, client, err := r.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if r.toServer.Load() {
			continue
		}
		if way := r.way(client); way != nil {
			way.Write(buf[:n]) // a server that is down is as good as a loss
		}
	}
}

// way returns the socket that stands for a client, nil if there is none.
func (r *UDPRelay) way(client netip.AddrPort) *net.UDPConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if way := r.ways[client]; way != nil || r.closed {
		return way
	}
	way, err := net.DialUDP("udp", nil, r.server)
	if err != nil {
		return nil
	}
	r.ways[client] = way
	r.wg.Go(func() { r.back(way, client) })
	return way
}

// back passes on what the server sends to a client.
func (r *UDPRelay) back(way *net.UDPConn, client netip.AddrPort) {
	buf := make([]byte, maxPacket)
	b := bucket{burst, time.Now()}
	for {
		n, err := way.Read(buf)
		r.mu.Lock()
		closed := r.closed
		r.mu.Unlock()
		switch {
		case closed:
			return
		case err != nil: // the server's port was closed: it may come back
		case !r.toClients.Load() && b.take(n, r.limit.Load()):
			r.conn.WriteToUDPAddrPort(buf[:n], client)
		}
	}
}

// bucket holds the bytes that may pass now.
type bucket struct {
	bytes float64
	at    time.Time
}

// take reports whether n bytes may pass, under a limit per second.
func (b *bucket) take(n int, limit int64) bool {
	now := time.Now()
	b.bytes = min(burst, b.bytes+now.Sub(b.at).Seconds()*float64(limit))
	b.at = now
	if limit > 0 && b.bytes < float64(n) {
		return false
	}
	b.bytes = max(0, b.bytes-float64(n))
	return true
}
