package certs

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
)

// ServerTLS returns the configuration for a listener that speaks alpn (none if
// empty). It lives as long as the listener: every handshake takes the
// certificate and the CAs that are current then.
//
// A peer without a certificate, with one that no current CA signed, or without
// an identity of this node's domain is refused. What it may do by its role is
// the caller's to decide: see [Credentials.PeerIdentity].
func (c *Credentials) ServerTLS(alpn string) *tls.Config {
	cfg := c.serverTLS(alpn)
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return c.serverTLS(alpn), nil
	}
	return cfg
}

func (c *Credentials) serverTLS(alpn string) *tls.Config {
	m := c.current.Load()
	cfg := m.baseTLS(alpn)
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.ClientCAs = m.roots
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		_, _, err := c.PeerIdentity(cs)
		return err
	}
	return cfg
}

// ClientTLS returns the configuration for one dial to a node of cluster that
// speaks alpn (none if empty). It holds what is current now and is cheap: call
// it for every dial and keep none.
//
// Only a source or relay of that cluster, in this node's domain, is accepted;
// at which address it was reached does not matter.
func (c *Credentials) ClientTLS(alpn string, cluster heliograph.ClusterID) *tls.Config {
	return c.dialTLS(alpn, cluster, func(peer heliograph.Identity) error {
		if !peer.Role.Serves() {
			return fmt.Errorf("peer %s is a %s, which cannot be followed: its certificate must be for a source or relay", peer, peer.Role)
		}
		return nil
	})
}

// AdminTLS returns the configuration for one dial to the admin API of a node of
// cluster, as [Credentials.ClientTLS] does for following one. Any node of that
// cluster is accepted, a mirror too, if its certificate is good for being dialled.
func (c *Credentials) AdminTLS(alpn string, cluster heliograph.ClusterID) *tls.Config {
	return c.dialTLS(alpn, cluster, func(peer heliograph.Identity) error {
		if !dialled(peer.Role) {
			return fmt.Errorf("peer %s is an %s and no node: check the address", peer, peer.Role)
		}
		return nil
	})
}

// dialTLS accepts peers of cluster that accept takes.
func (c *Credentials) dialTLS(alpn string, cluster heliograph.ClusterID, accept func(peer heliograph.Identity) error) *tls.Config {
	m := c.current.Load()
	cfg := m.baseTLS(alpn)
	cfg.ServerName = string(cluster)
	cfg.RootCAs = m.roots
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		peer, _, err := c.PeerIdentity(cs)
		if err != nil {
			return err
		}
		if peer.Cluster != cluster {
			return fmt.Errorf("peer %s is not of cluster %q: check the address and the cluster in it", peer, cluster)
		}
		return accept(peer)
	}
	return cfg
}

// baseTLS returns what both sides have in common. Without session tickets no
// connection is resumed, so every one is verified against current files.
func (m *material) baseTLS(alpn string) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{m.cert},
		SessionTicketsDisabled: true,
	}
	if alpn != "" {
		cfg.NextProtos = []string{alpn}
	}
	return cfg
}

// PeerIdentity returns who the peer of a connection is, and when its
// certificate, or what signed it, expires: the connection must not outlive
// that. It is an error if the peer's chain was not verified, if the certificate
// has not exactly one identity, or one of another domain than this node's.
func (c *Credentials) PeerIdentity(cs tls.ConnectionState) (id heliograph.Identity, notAfter time.Time, err error) {
	fail := func(format string, args ...any) (heliograph.Identity, time.Time, error) {
		return heliograph.Identity{}, time.Time{}, fmt.Errorf(format, args...)
	}
	if len(cs.VerifiedChains) == 0 || len(cs.PeerCertificates) == 0 {
		return fail("peer has no verified certificate")
	}
	id, err = IdentityOf(cs.PeerCertificates[0])
	if err != nil {
		return fail("peer: %w", err)
	}
	if own := c.Identity().Domain; id.Domain != own {
		return fail("peer %s is of domain %q, this node of %q", id, id.Domain, own)
	}
	return id, chainsEnd(cs.VerifiedChains), nil
}
