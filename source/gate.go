package source

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/quic-go/quic-go"
)

var errGateFull = errors.New("too many connections")

// gate bounds the connections before they have proved anything. Its limits are
// twice those for mirrors, so that a mirror beyond a limit can still be answered
// with a code, while whoever cannot say hello is turned away unheard.
type gate struct {
	maxTotal, maxAddress, maxPending int
	failed                           func(addr net.Addr, err error) // a connection that never said anything

	mu      sync.Mutex
	total   int
	pending int // of them not accepted yet
	address map[netip.Addr]int
}

type visitKey struct{}

// visit is one connection within the gate.
type visit struct {
	addr     netip.Addr
	accepted bool // guarded by gate.mu
}

func newGate(cfg Config, failed func(net.Addr, error)) *gate {
	return &gate{
		maxTotal:   2*cfg.MaxMirrors + 16,
		maxAddress: 2*cfg.MaxPerAddress + 16,
		maxPending: cfg.MaxMirrors/4 + 4,
		failed:     failed,
		address:    make(map[netip.Addr]int),
	}
}

// suspicious reports whether addresses must be proved before a handshake costs
// anything; it implements quic.Transport.VerifySourceAddress.
func (g *gate) suspicious(net.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pending >= g.maxPending
}

// enter implements quic.Transport.ConnContext.
func (g *gate) enter(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	v := &visit{addr: hostOf(info.RemoteAddr)}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= g.maxTotal || g.address[v.addr] >= g.maxAddress {
		return nil, errGateFull
	}
	g.total++
	g.pending++
	g.address[v.addr]++
	context.AfterFunc(ctx, func() { g.leave(v, info.RemoteAddr, context.Cause(ctx)) })
	return context.WithValue(ctx, visitKey{}, v), nil
}

// accept says that a connection's handshake is complete.
func (g *gate) accept(ctx context.Context) {
	v, ok := ctx.Value(visitKey{}).(*visit)
	g.mu.Lock()
	defer g.mu.Unlock()
	if ok && !v.accepted {
		v.accepted = true
		g.pending--
	}
}

func (g *gate) leave(v *visit, addr net.Addr, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.address[v.addr]--; g.address[v.addr] == 0 {
		delete(g.address, v.addr)
	}
	if !v.accepted {
		g.pending--
		g.failed(addr, err)
	}
}

// hostOf returns the IP address of a UDP address; the zero Addr for any other.
func hostOf(addr net.Addr) netip.Addr {
	if u, ok := addr.(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
