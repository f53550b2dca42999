package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/quic-go/quic-go"
)

const mirrorURI = "spiffe://heliograph.local/heliograph/prod-eu/mirror/m1"

func TestHandshake(t *testing.T) {
	ca := newCA(t, "")
	source := load(t, issue(t, ca, "prod-us", heliograph.RoleSource, "n1"))
	for _, role := range []heliograph.Role{heliograph.RoleMirror, heliograph.RoleRelay, heliograph.RoleOperator, heliograph.RoleSource} {
		client := load(t, issue(t, ca, "prod-eu", role, "c-"+string(role)))
		sees, serverErr, clientErr := handshake(source.ServerTLS(alpn), client.ClientTLS(alpn, "prod-us"))
		if serverErr != nil || clientErr != nil {
			t.Fatalf("%s: server: %v, client: %v", role, serverErr, clientErr)
		}
		if sees.server.Version != tls.VersionTLS13 || sees.server.NegotiatedProtocol != alpn || sees.server.DidResume {
			t.Errorf("%s: version %x, ALPN %q, resumed %v", role, sees.server.Version, sees.server.NegotiatedProtocol, sees.server.DidResume)
		}
		id, notAfter, err := source.PeerIdentity(sees.server)
		if err != nil || id != client.Identity() || !notAfter.Equal(client.NotAfter()) {
			t.Errorf("%s: the source sees %v until %s, %v; want %v until %s", role, id, notAfter, err, client.Identity(), client.NotAfter())
		}
		id, notAfter, err = client.PeerIdentity(sees.client)
		if err != nil || id != source.Identity() || !notAfter.Equal(source.NotAfter()) {
			t.Errorf("%s: the client sees %v until %s, %v; want %v until %s", role, id, notAfter, err, source.Identity(), source.NotAfter())
		}
	}
}

func TestServerRefuses(t *testing.T) {
	ca, foreign, twin := newCA(t, ""), newCA(t, ""), newCA(t, "example.org")
	// The server believes two CAs, of which one signs for another domain.
	files := issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
	write(t, files.CA, slices.Concat(read(t, files.CA), read(t, filepath.Join(twin, "ca.crt"))))
	server := load(t, files).ServerTLS(alpn)
	client := load(t, issue(t, ca, "prod-eu", heliograph.RoleMirror, "m1"))
	clientUsage := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	for _, test := range []struct {
		name string
		edit func(*tls.Config)
		want string
	}{
		{"no certificate", func(c *tls.Config) { c.Certificates = nil }, "didn't provide a certificate"},
		{"foreign CA", present(t, forge(t, foreign, mirrorURI, nil)), "unknown authority"},
		{"other domain, signed for it", present(t, forge(t, twin, "spiffe://example.org/heliograph/prod-eu/mirror/m1", nil)), `of domain "example.org"`},
		{"other domain, by our CA", present(t, forge(t, ca, "spiffe://example.org/heliograph/prod-eu/mirror/m1", nil)), "not authorized to sign for this name"},
		{"domain below ours", present(t, forge(t, ca, "spiffe://a.heliograph.local/heliograph/prod-eu/mirror/m1", nil)), `of domain "a.heliograph.local"`},
		{"our domain, by their CA", present(t, forge(t, twin, mirrorURI, nil)), "not authorized to sign for this name"},
		{"expired", present(t, forge(t, ca, mirrorURI, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), "expired"},
		{"not valid yet", present(t, forge(t, ca, mirrorURI, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })), "not yet valid"},
		{"no client usage", present(t, forge(t, ca, mirrorURI, clientUsage)), "incompatible key usage"},
		{"two URI SANs", present(t, forge(t, ca, mirrorURI, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, mustURL(t, "spiffe://heliograph.local/heliograph/prod-eu/operator/m1"))
		})), "2 URI SANs"},
		{"identity in the common name", present(t, forge(t, ca, mirrorURI, func(c *x509.Certificate) {
			c.URIs, c.Subject = nil, pkix.Name{CommonName: mirrorURI}
		})), "0 URI SANs"},
		{"malformed identity", present(t, forge(t, ca, mirrorURI+"/more", nil)), "want spiffe://"},
		{"unknown role", present(t, forge(t, ca, "spiffe://heliograph.local/heliograph/prod-eu/voter/m1", nil)), "role"},
		{"TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "unsupported versions"},
		{"other ALPN", func(c *tls.Config) { c.NextProtos = []string{"h2"} }, "unsupported application protocols"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := client.ClientTLS(alpn, "prod-us")
			test.edit(cfg)
			_, serverErr, clientErr := handshake(server, cfg)
			wantError(t, serverErr, test.want)
			if clientErr == nil {
				t.Error("the client was served")
			}
		})
	}
}

// present makes a client show another certificate, and be no pickier than that.
func present(t *testing.T, files certs.Files) func(*tls.Config) {
	t.Helper()
	pair := forged(t, files)
	return func(c *tls.Config) {
		// Not Certificates: a client keeps one back that the server's CAs
		// did not sign.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
}

func TestClientRefuses(t *testing.T) {
	ca, foreign, twin := newCA(t, ""), newCA(t, ""), newCA(t, "example.org")
	files := issue(t, ca, "prod-eu", heliograph.RoleMirror, "m1")
	write(t, files.CA, slices.Concat(read(t, files.CA), read(t, filepath.Join(twin, "ca.crt"))))
	client := load(t, files)
	source := load(t, issue(t, ca, "prod-us", heliograph.RoleSource, "n1"))
	for _, test := range []struct {
		name   string
		server certs.Files
		want   string
	}{
		{"foreign CA", forge(t, foreign, sourceURI, nil), "unknown authority"},
		{"another cluster", issue(t, ca, "prod-ap", heliograph.RoleSource, "n9"), "valid for prod-ap, not prod-us"},
		{"another cluster with our server name", forge(t, ca, "spiffe://heliograph.local/heliograph/prod-ap/source/n1", nil), `not of cluster "prod-us"`},
		{"our cluster without the server name", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.DNSNames = []string{"n1"} }), "valid for n1, not prod-us"},
		{"server name as common name", forge(t, ca, sourceURI, func(c *x509.Certificate) {
			c.DNSNames, c.Subject = nil, pkix.Name{CommonName: "prod-us"}
		}), "not valid for any names"},
		{"a mirror", forge(t, ca, "spiffe://heliograph.local/heliograph/prod-us/mirror/m2", nil), "cannot be followed"},
		{"an operator", forge(t, ca, "spiffe://heliograph.local/heliograph/prod-us/operator/o", nil), "cannot be followed"},
		{"no server usage", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), "incompatible key usage"},
		{"other domain", forge(t, twin, "spiffe://example.org/heliograph/prod-us/source/n1", nil), `of domain "example.org"`},
		{"expired", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired"},
		{"two URI SANs", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), "2 URI SANs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := source.ServerTLS(alpn)
			server.GetConfigForClient = nil
			server.Certificates = []tls.Certificate{forged(t, test.server)}
			_, serverErr, clientErr := handshake(server, client.ClientTLS(alpn, "prod-us"))
			wantError(t, clientErr, test.want)
			if serverErr == nil {
				t.Error("the server was believed")
			}
		})
	}
	t.Run("no cluster", func(t *testing.T) {
		_, _, clientErr := handshake(source.ServerTLS(alpn), client.ClientTLS(alpn, ""))
		wantError(t, clientErr, "ServerName")
	})
}

// A mirror can be dialled for its admin API, and yet by nobody who wants to follow it.
func TestAdminTLS(t *testing.T) {
	ca, foreign := newCA(t, ""), newCA(t, "")
	operator := load(t, issue(t, ca, "prod-eu", heliograph.RoleOperator, "ops"))
	for _, role := range []heliograph.Role{heliograph.RoleSource, heliograph.RoleRelay, heliograph.RoleMirror} {
		node := load(t, issue(t, ca, "prod-eu", role, "n-"+string(role)))
		sees, serverErr, clientErr := handshake(node.ServerTLS(alpn), operator.AdminTLS(alpn, "prod-eu"))
		if serverErr != nil || clientErr != nil {
			t.Fatalf("%s: server: %v, client: %v", role, serverErr, clientErr)
		}
		if id, _, err := node.PeerIdentity(sees.server); err != nil || id != operator.Identity() {
			t.Errorf("%s: the node sees %v, %v", role, id, err)
		}
		_, _, err := handshake(node.ServerTLS(alpn), operator.ClientTLS(alpn, "prod-eu"))
		if role.Serves() {
			if err != nil {
				t.Errorf("%s: %v", role, err)
			}
		} else {
			wantError(t, err, "is a mirror, which cannot be followed")
		}
	}
	const nodeURI = "spiffe://heliograph.local/heliograph/prod-eu/mirror/m1"
	named := func(c *x509.Certificate) { c.DNSNames = []string{"prod-eu"} }
	for _, test := range []struct {
		name   string
		server certs.Files
		want   string
	}{
		{"an operator", forge(t, ca, "spiffe://heliograph.local/heliograph/prod-eu/operator/ops", named), "is an operator and no node"},
		{"another cluster with our server name", forge(t, ca, "spiffe://heliograph.local/heliograph/prod-ap/mirror/m1", named), `not of cluster "prod-eu"`},
		{"another cluster", issue(t, ca, "prod-ap", heliograph.RoleMirror, "m9"), "valid for prod-ap, not prod-eu"},
		{"foreign CA", forge(t, foreign, nodeURI, named), "unknown authority"},
		{"for dialling only", forge(t, ca, nodeURI, clientOnly), "not valid for any names"},
		{"for dialling only, with a name", forge(t, ca, nodeURI, func(c *x509.Certificate) { clientOnly(c); named(c) }), "incompatible key usage"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := operator.ServerTLS(alpn)
			server.GetConfigForClient = nil
			server.Certificates = []tls.Certificate{forged(t, test.server)}
			_, _, clientErr := handshake(server, operator.AdminTLS(alpn, "prod-eu"))
			wantError(t, clientErr, test.want)
		})
	}
}

func TestPeerIdentityNeedsVerification(t *testing.T) {
	source := load(t, issue(t, newCA(t, ""), "prod-us", heliograph.RoleSource, "n1"))
	unverified := tls.ConnectionState{PeerCertificates: []*x509.Certificate{source.ServerTLS(alpn).Certificates[0].Leaf}}
	for _, cs := range []tls.ConnectionState{{}, unverified} {
		_, _, err := source.PeerIdentity(cs)
		wantError(t, err, "no verified certificate")
	}
}

// The transport that all this is for: mutual TLS inside QUIC, and a refusal
// that reaches the peer as a handshake error.
func TestQUIC(t *testing.T) {
	ca := newCA(t, "")
	source := load(t, issue(t, ca, "prod-us", heliograph.RoleSource, "n1"))
	mirror := load(t, issue(t, ca, "prod-eu", heliograph.RoleMirror, "m1"))
	listener, err := transport(t).Listen(source.ServerTLS(alpn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialer := transport(t)

	conn, err := dialer.Dial(t.Context(), listener.Addr(), mirror.ClientTLS(alpn, "prod-us"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseWithError(0, "")
	accepted, err := listener.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.CloseWithError(0, "")
	if id, _, err := source.PeerIdentity(accepted.ConnectionState().TLS); err != nil || id != mirror.Identity() {
		t.Errorf("the source sees %v, %v", id, err)
	}
	if id, _, err := mirror.PeerIdentity(conn.ConnectionState().TLS); err != nil || id != source.Identity() {
		t.Errorf("the mirror sees %v, %v", id, err)
	}

	for _, test := range []struct {
		name string
		cfg  func() *tls.Config
		want string
	}{
		{"another cluster", func() *tls.Config { return mirror.ClientTLS(alpn, "prod-ap") }, "not prod-ap"},
		{"another ALPN", func() *tls.Config { return mirror.ClientTLS("heliograph/9", "prod-us") }, "no application protocol"},
	} {
		_, err := dialer.Dial(t.Context(), listener.Addr(), test.cfg(), nil)
		wantError(t, err, test.want)
	}

	// A mirror that listens as if it could be followed.
	second := load(t, issue(t, ca, "prod-us", heliograph.RoleMirror, "m2"))
	impostor, err := transport(t).Listen(second.ServerTLS(alpn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer impostor.Close()
	_, err = dialer.Dial(t.Context(), impostor.Addr(), mirror.ClientTLS(alpn, "prod-us"), nil)
	wantError(t, err, "is a mirror, which cannot be followed")

	// A client may be through before the server has looked at its certificate.
	bare := mirror.ClientTLS(alpn, "prod-us")
	bare.Certificates = nil
	if conn, err := dialer.Dial(t.Context(), listener.Addr(), bare, nil); err == nil {
		defer conn.CloseWithError(0, "")
		_, err = conn.AcceptStream(t.Context())
		wantError(t, err, "certificate required")
	} else {
		wantError(t, err, "certificate required")
	}
}

// transport returns QUIC on a free port; it is gone, goroutines and all, when
// the test ends.
func transport(t *testing.T) *quic.Transport {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: conn}
	t.Cleanup(func() {
		if err := errors.Join(tr.Close(), conn.Close()); err != nil {
			t.Error(err)
		}
	})
	return tr
}
