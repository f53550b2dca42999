package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph"
)

// errNoOperator tells who may not change a node how it is changed.
var errNoOperator = errors.New("what changes a node is taken through its admin socket (--admin unix:DATA-DIR/" + socketFile +
	" on its machine), or over TLS (--listen-admin-tls) with an operator certificate of its cluster (--admin https://HOST:PORT --cert --key --ca)")

// operator returns who a caller is that may change this node, for [Node.audit]: who
// may open the admin socket, or shows an operator's certificate of the node's
// cluster. Everyone else gets an error that says the way out, to be sent with
// [http.StatusForbidden]. lis is what r came through.
func (n *Node) operator(lis net.Listener, r *http.Request) (by string, err error) {
	if lis.Addr().Network() == "unix" {
		return socketPeer(r.Context()), nil
	}
	if r.TLS == nil {
		return "", errNoOperator
	}
	id, notAfter, err := n.cfg.Credentials.PeerIdentity(*r.TLS)
	if err != nil {
		return "", err
	}
	if err := n.checkOperator(id, notAfter, time.Now()); err != nil {
		n.cfg.Log.Warn("admin request refused", "path", r.URL.Path, "peer", id.String(), "err", err)
		return "", err
	}
	return "operator " + id.Name, nil
}

// checkOperator decides whether id, whose certificate holds until notAfter, may
// change this node.
func (n *Node) checkOperator(id heliograph.Identity, notAfter, now time.Time) error {
	issue := fmt.Sprintf("issue one with helio certs issue --cluster %s --role operator", n.cfg.Cluster)
	switch {
	case now.After(notAfter):
		return fmt.Errorf("the certificate of %s has expired: connect with a renewed one", id)
	case id.Role != heliograph.RoleOperator:
		return fmt.Errorf("%s is a %s, and only an operator of cluster %s may change this node: %s", id, id.Role, n.cfg.Cluster, issue)
	case id.Cluster != n.cfg.Cluster:
		return fmt.Errorf("%s is an operator of cluster %s, and this node is of cluster %s: %s", id, id.Cluster, n.cfg.Cluster, issue)
	}
	return nil
}

// audit logs that somebody has changed this node, or tried to: exactly one line for
// each change, with its outcome in args ("err", if it failed).
func (n *Node) audit(action, by string, args ...any) {
	n.cfg.Log.With("action", action, "by", by, "cluster", n.cfg.Cluster, "database", n.cfg.Database).Warn("audit", args...)
}

// peerKey is the key of a connection's net.Conn in the contexts of its requests.
type peerKey struct{}

// socketPeer names the process at the other end of the admin socket.
func socketPeer(ctx context.Context) string {
	if conn, ok := ctx.Value(peerKey{}).(*net.UnixConn); ok {
		if uid, err := peerUID(conn); err == nil {
			return fmt.Sprintf("uid %d", uid)
		}
	}
	return "admin socket"
}

// peerUID returns the user at the other end of conn, as it was when it connected.
func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
