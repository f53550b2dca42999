package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/pkg/v3/netutil"
)

// defaultPeerPort is etcd's own.
const defaultPeerPort = "2380"

// advertised returns the URLs at which etcd clients are told to find the node.
func (n *Node) advertised() []string {
	if len(n.cfg.AdvertiseClients) > 0 {
		return n.cfg.AdvertiseClients
	}
	host, port, err := net.SplitHostPort(n.addrs.Clients)
	if err != nil {
		return nil // none are served
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = outside()
	}
	return []string{n.clientScheme() + net.JoinHostPort(host, port)}
}

// outside returns the address that this machine has on its default route: one that
// listens on all addresses has to be told of by one of them.
func outside() string {
	host, err := netutil.GetDefaultHost()
	if err != nil {
		return "127.0.0.1"
	}
	return host
}

func (n *Node) clientScheme() string {
	if n.cfg.ClientTLS != nil {
		return "https://"
	}
	return "http://"
}

// peerURL returns where members will reach the promoted etcd: what was asked for,
// what the node was started with, or etcd's peer port on the host at which clients
// are told to find the node.
func (n *Node) peerURL(asked string) (string, error) {
	asked = strings.TrimSuffix(asked, "/")
	switch {
	case asked != "" && n.cfg.PeerURL != "" && asked != n.cfg.PeerURL:
		// After a restart the node would go by its own.
		return asked, fmt.Errorf("the node was started with --peer-url %s: leave it out here, or restart the node with the other one", n.cfg.PeerURL)
	case asked != "":
		return asked, nil
	case n.cfg.PeerURL != "":
		return n.cfg.PeerURL, nil
	}
	host := "127.0.0.1"
	if list := n.advertised(); len(list) > 0 {
		if u, err := url.Parse(list[0]); err == nil {
			host = u.Hostname()
		}
	}
	return "http://" + net.JoinHostPort(host, defaultPeerPort), nil
}

// parseURL reads http(s)://host:port.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Port() == "0" ||
		u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%.200q: want http://host:port or https://host:port", s)
	}
	return u, nil
}

// parsePeerURL reads a URL that members are told: it names a host.
func parsePeerURL(s string) (*url.URL, error) {
	u, err := parseURL(s)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsUnspecified() {
		return nil, fmt.Errorf("%.200q: members are told this, and it names no host: use an address or a name of this machine", s)
	}
	return u, nil
}

// resolveWait is how long a plan waits for the name in the URL that members are told.
const resolveWait = time.Second

// unresolved says that this machine does not know the name in a peer URL; empty if
// it does. Members may know it all the same.
func unresolved(ctx context.Context, peerURL string) string {
	u, err := url.Parse(peerURL)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	// Go's own resolver leaves nothing behind when its context ends.
	if _, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, u.Hostname()); err == nil || errors.Is(ctx.Err(), context.Canceled) {
		return ""
	}
	return fmt.Sprintf("this machine does not find %s, and members have to", u.Hostname())
}

// listenPeers listens where members will reach the promoted etcd, and returns the
// URL at which etcd is to listen in its place: that address if it is one of this
// machine, all addresses if it is a name, or that of something in between.
func (n *Node) listenPeers(peerURL string) (net.Listener, string, error) {
	u, err := parseURL(peerURL)
	if err != nil {
		return nil, "", fmt.Errorf("--peer-url %w", err)
	}
	if u.Scheme == "https" && (n.cfg.ClientTLS == nil || !n.cfg.ClientTLS.VerifiesClients()) {
		return nil, "", fmt.Errorf("--peer-url %s: https between members takes the certificates of --client-cert, --client-key and --client-ca: give them, or use http", peerURL)
	}
	at := u.Host
	if ip, err := netip.ParseAddr(u.Hostname()); err != nil && u.Hostname() != "localhost" || err == nil && ip.Zone() != "" {
		at = net.JoinHostPort("0.0.0.0", u.Port())
	}
	lis, err := net.Listen("tcp", at)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		at = net.JoinHostPort("0.0.0.0", u.Port())
		lis, err = net.Listen("tcp", at)
	}
	if err != nil {
		return nil, "", listenError("--peer-url", strings.TrimPrefix(peerURL, u.Scheme+"://"), err)
	}
	return lis, u.Scheme + "://" + at, nil
}

// tryPeers returns where etcd will listen for members; an error if it cannot.
func (n *Node) tryPeers(peerURL string) (string, error) {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	if n.peersTaken {
		return "", errPromoting
	}
	if _, err := parsePeerURL(peerURL); err != nil {
		return "", fmt.Errorf("--peer-url %w", err)
	}
	lis, at, err := n.listenPeers(peerURL)
	if err != nil && n.cfg.PeerURL != "" {
		err = fmt.Errorf("%w; the node was started with it, and goes by another one when it is restarted with that", err)
	}
	if err != nil {
		return "", err
	}
	return at, lis.Close()
}

// takePeers reserves the address for members, so that no plan that is being made
// tries it just when etcd needs it; or gives it back.
func (n *Node) takePeers(taken bool) {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	n.peersTaken = taken
}

// clientTLS returns the certificates for etcd clients, as etcd wants them: with a
// CA it asks every client for a certificate.
func (n *Node) clientTLS() transport.TLSInfo {
	if n.cfg.ClientTLS == nil {
		return transport.TLSInfo{}
	}
	files := n.cfg.ClientTLS.Files()
	return transport.TLSInfo{CertFile: files.Cert, KeyFile: files.Key, TrustedCAFile: files.CA, ClientCertAuth: files.CA != ""}
}
