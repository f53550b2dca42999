package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// Addrs are the addresses that a node listens on; empty where it does not.
type Addrs struct {
	Mirrors, Clients, Admin string // host:port
	AdminTLS                string // host:port
	Socket                  string // path of the admin socket
}

// Addrs returns the node's addresses, with the ports that were chosen for :0. They
// stay the same as long as the node is open; a promoted one serves no mirrors.
func (n *Node) Addrs() Addrs { return n.addrs }

// listenAdmin opens the sockets of the admin API.
func (n *Node) listenAdmin() error {
	if n.cfg.ListenAdmin != "" {
		lis, err := net.Listen("tcp", n.cfg.ListenAdmin)
		if err != nil {
			return listenError("--listen-admin", n.cfg.ListenAdmin, err)
		}
		n.admin = append(n.admin, lis)
		n.addrs.Admin = lis.Addr().String()
	}
	if n.cfg.ListenAdminTLS != "" && n.cfg.Credentials == nil {
		n.cfg.Log.Warn("the admin API is not served over TLS: there is no certificate", "err", n.cfg.CredentialsErr)
	} else if n.cfg.ListenAdminTLS != "" {
		lis, err := net.Listen("tcp", n.cfg.ListenAdminTLS)
		if err != nil {
			return listenError("--listen-admin-tls", n.cfg.ListenAdminTLS, err)
		}
		// Who shows no certificate of a node or operator is refused at the handshake.
		n.admin = append(n.admin, tls.NewListener(lis, n.cfg.Credentials.ServerTLS(adminALPN)))
		n.addrs.AdminTLS = lis.Addr().String()
	}
	n.addrs.Socket = filepath.Join(n.cfg.DataDir, socketFile)
	lis, err := listenUnix(n.addrs.Socket)
	if err != nil {
		return err
	}
	n.admin = append(n.admin, lis)
	return nil
}

// listenMirrors opens the socket for mirrors; nil if there is none.
func (n *Node) listenMirrors() (net.PacketConn, error) {
	at, first := n.addrs.Mirrors, n.addrs.Mirrors == ""
	if first {
		at = n.cfg.Listen
	}
	if at == "" {
		return nil, nil
	}
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		return nil, listenError("--listen", at, err)
	}
	if first {
		n.addrs.Mirrors = conn.LocalAddr().String()
	}
	return conn, nil
}

// listenClients opens the socket for etcd clients; nil if there is none.
func (n *Node) listenClients() (net.Listener, error) {
	at, first := n.addrs.Clients, n.addrs.Clients == ""
	if first {
		at = n.cfg.ListenClients
	}
	if at == "" {
		return nil, nil
	}
	lis, err := net.Listen("tcp", at)
	if err != nil {
		return nil, listenError("--listen-clients", at, err)
	}
	if first {
		n.addrs.Clients = lis.Addr().String()
	}
	return lis, nil
}

// listenUnix listens at path, which only this user may connect to. The caller
// holds the data directory's lock, so a socket that is there is a dead one's.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	lis, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("admin socket %s: the path is longer than a unix socket's may be (107 bytes): choose a shorter --data-dir", path)
	}
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), lis.Close())
	}
	return lis, nil
}

func listenError(flag, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s %s: the port is in use: stop what listens there, or choose another port", flag, addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s %s: this machine has no such address: use one of its own, or 0.0.0.0 for all", flag, addr)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s %s: no permission: choose a port above 1023", flag, addr)
	}
	if _, unknown := errors.AsType[*net.DNSError](err); unknown {
		return fmt.Errorf("%s %s: this host name is not known: use an address of this machine, or 0.0.0.0 for all", flag, addr)
	}
	return fmt.Errorf("%s %s: %w", flag, addr, err)
}
