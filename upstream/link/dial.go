package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
)

const (
	// maxBulkStreams is how many unidirectional streams a source may have
	// open: a snapshot's and that of the entries behind it, and as many while
	// their ends are on their way.
	maxBulkStreams = 4
	// maxAddresses bounds what one name may resolve to.
	maxAddresses = 16
	// idleTimeout and keepAlive find a peer that is gone without a word when
	// nothing else does.
	idleTimeout = 15 * time.Second
	keepAlive   = 5 * time.Second
)

// target is one place where the source may be.
type target struct {
	host string // as the address names it
	addr *net.UDPAddr
}

func (t target) String() string {
	if s := t.addr.String(); s != t.host {
		return t.host + " (" + s + ")"
	}
	return t.host
}

// same reports whether both are one place, by whatever name.
func (t target) same(u target) bool {
	return t.addr != nil && u.addr != nil && t.addr.String() == u.addr.String()
}

// resolve returns what a host of the address stands for just now.
func (l *Link) resolve(ctx context.Context, host string) ([]target, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	defer cancel()
	name, service, err := net.SplitHostPort(host)
	if err != nil {
		return nil, &ConfigurationError{Why: fmt.Sprintf("host %q of the address", host), Err: err}
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, err
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("%s has no address", name)
	}
	var targets []target
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		targets = append(targets, target{host, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), uint16(port)))})
	}
	return targets, nil
}

// connection is a QUIC connection with the socket that belongs to it alone: a
// new socket for every try leaves behind what a NAT or firewall thinks of the
// last.
type connection struct {
	*quic.Conn
	transport *quic.Transport
}

// dial makes one connection. It leaves nothing open when it fails.
func (l *Link) dial(ctx context.Context, t target) (*connection, error) {
	conf, err := l.cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	socket, err := l.cfg.Listen()
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	defer cancel()
	transport := &quic.Transport{Conn: socket}
	conn, err := transport.Dial(ctx, t.addr, conf, &quic.Config{
		HandshakeIdleTimeout:           l.cfg.DialTimeout,
		MaxIdleTimeout:                 idleTimeout,
		KeepAlivePeriod:                keepAlive,
		InitialStreamReceiveWindow:     l.cfg.InitialWindow,
		MaxStreamReceiveWindow:         l.cfg.StreamWindow,
		InitialConnectionReceiveWindow: 2 * maxBulkStreams * l.cfg.InitialWindow,
		MaxConnectionReceiveWindow:     max(l.cfg.ConnectionWindow, 2*maxBulkStreams*l.cfg.InitialWindow),
		MaxIncomingStreams:             -1, // none: quic-go reads 0 as its default
		MaxIncomingUniStreams:          maxBulkStreams,
	})
	if err != nil {
		return nil, errors.Join(err, closeSocket(transport))
	}
	return &connection{conn, transport}, nil
}

// close tells the source why and returns when everything has stopped.
func (c *connection) close(code heliograph.Code, detail string) error {
	err := c.CloseWithError(quic.ApplicationErrorCode(code), detail)
	return errors.Join(err, closeSocket(c.transport))
}

func closeSocket(t *quic.Transport) error {
	return errors.Join(t.Close(), t.Conn.Close())
}
