package node_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/node"
)

const adminALPN = "http/1.1"

// as returns credentials of an identity with a name of its own.
func (p pki) as(t *testing.T, cluster heliograph.ClusterID, role heliograph.Role, name string, lifetime time.Duration) *certs.Credentials {
	t.Helper()
	files, err := certs.Issue(certs.IssueConfig{Dir: string(p), Cluster: cluster, Role: role, Name: name, Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	c, err := certs.Load(files, certs.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// secured is a running mirror of prod-eu that reaches no source, and what it logs.
func (p pki) secured(t *testing.T) (*node.Node, *journal) {
	t.Helper()
	files, err := certs.Issue(certs.IssueConfig{Dir: string(p), Cluster: "prod-eu", Role: heliograph.RoleMirror, Name: "eu1"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := p.mirror(t, strings.TrimPrefix(nobody, "http://"))
	if cfg.Credentials, err = certs.Load(files, certs.Config{Dialled: true, Poll: 10 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	log := new(journal)
	cfg.Log = log.logger()
	cfg.ListenAdmin, cfg.ListenAdminTLS = "127.0.0.1:0", "127.0.0.1:0"
	n := open(t, cfg)
	run(t, n)
	return n, log
}

// audits returns the lines of what was done to the node.
func (j *journal) audits() (lines []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.b.String()) {
		if strings.Contains(line, "msg=audit") {
			lines = append(lines, line)
		}
	}
	return lines
}

// send sends a request over a connection of its own; with conf, over TLS.
func send(t *testing.T, at string, conf *tls.Config, method, path string, header http.Header) (code int, body string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	network, scheme := "tcp", "http"
	if strings.Contains(at, "/") {
		network = "unix"
	}
	transport := &http.Transport{DisableKeepAlives: true}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at)
	}
	if transport.DialContext = dial; conf != nil {
		scheme, transport.TLSClientConfig = "https", conf
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://helio"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Who may change a node, by what they come through and what they show.
func TestOperator(t *testing.T) {
	p := newPKI(t)
	n, log := p.secured(t)
	at := n.Addrs()
	tlsOf := func(cluster heliograph.ClusterID, role heliograph.Role, name string) *tls.Config {
		return p.as(t, cluster, role, name, 0).AdminTLS(adminALPN, "prod-eu")
	}
	for _, test := range []struct {
		name    string
		at      string
		conf    *tls.Config
		by      string // "": refused
		refusal string
	}{
		{"operator", at.AdminTLS, tlsOf("prod-eu", heliograph.RoleOperator, "alice"), `by="operator alice"`, ""},
		{"socket", at.Socket, nil, fmt.Sprintf(`by="uid %d"`, os.Getuid()), ""},
		{"clear text", at.Admin, nil, "", "is taken through its admin socket"},
		{"mirror", at.AdminTLS, tlsOf("prod-eu", heliograph.RoleMirror, "m9"), "",
			"is a mirror, and only an operator of cluster prod-eu may change this node: issue one with helio certs issue --cluster prod-eu --role operator"},
		{"relay", at.AdminTLS, tlsOf("prod-eu", heliograph.RoleRelay, "r9"), "", "is a relay, and only an operator"},
		{"source", at.AdminTLS, tlsOf("prod-us", heliograph.RoleSource, "s9"), "", "is a source, and only an operator"},
		{"operator of another cluster", at.AdminTLS, tlsOf("prod-us", heliograph.RoleOperator, "bob"), "",
			"is an operator of cluster prod-us, and this node is of cluster prod-eu"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(log.audits())
			code, body, err := send(t, test.at, test.conf, http.MethodPost, "/v1/resync", nil)
			if err != nil {
				t.Fatal(err)
			}
			audits := log.audits()[before:]
			if test.by == "" {
				if code != http.StatusForbidden || !strings.Contains(body, test.refusal) {
					t.Errorf("%d %q, want %q", code, body, test.refusal)
				}
				if len(audits) != 0 {
					t.Errorf("nothing was changed, but there is %q", audits)
				}
			} else {
				if code != http.StatusOK {
					t.Errorf("%d %q", code, body)
				}
				if len(audits) != 1 || !strings.Contains(audits[0], test.by) || !strings.Contains(audits[0], "action=resync") {
					t.Errorf("audit lines %q, want one with %s", audits, test.by)
				}
			}
			if code, _, err := send(t, test.at, test.conf, http.MethodGet, "/v1/status", nil); err != nil || code != http.StatusOK {
				t.Errorf("status: %d, %v", code, err)
			}
		})
	}
}

// Who shows no certificate that holds is not answered at all.
func TestAdminTLSRefuses(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	n, log := p.secured(t)
	good := p.as(t, "prod-eu", heliograph.RoleOperator, "alice", 0).AdminTLS(adminALPN, "prod-eu")
	show := func(shown *certs.Credentials) *tls.Config {
		conf := good.Clone()
		pair := shown.AdminTLS(adminALPN, "prod-eu").Certificates[0]
		// Not Certificates: a client keeps one back that the server's CAs did not sign.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		return conf
	}
	none := good.Clone()
	none.Certificates = nil
	short := p.as(t, "prod-eu", heliograph.RoleOperator, "short", 2*time.Second)
	for _, test := range []struct {
		name  string
		conf  *tls.Config
		wait  func()
		alert string // unless what was sent already has reset the connection
	}{
		{"no certificate", none, func() {}, "certificate required"},
		{"another CA", show(other.as(t, "prod-eu", heliograph.RoleOperator, "alice", 0)), func() {}, "unknown certificate authority"},
		{"expired", show(short), func() { waitFor(t, "expired", func() bool { return time.Now().After(short.NotAfter()) }) }, "expired certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.wait()
			for _, path := range []string{"/v1/status", "/v1/resync"} {
				code, body, err := send(t, n.Addrs().AdminTLS, test.conf, http.MethodPost, path, nil)
				if err == nil {
					t.Errorf("%s: %d %q", path, code, body)
				} else if !strings.Contains(err.Error(), "remote error: tls: "+test.alert) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("%s: %v, want %q", path, err, test.alert)
				}
			}
		})
	}
	if audits := log.audits(); len(audits) != 0 {
		t.Errorf("audit lines %q", audits)
	}
	if code, _, err := send(t, n.Addrs().AdminTLS, good, http.MethodGet, "/v1/status", nil); err != nil || code != http.StatusOK {
		t.Errorf("not even who may: %d, %v", code, err)
	}
	// What is spoken on the link is not spoken here.
	link := good.Clone()
	link.NextProtos = []string{"heliograph/1"}
	if _, _, err := send(t, n.Addrs().AdminTLS, link, http.MethodGet, "/v1/status", nil); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("the link's protocol gets %v", err)
	}
}

// An open connection ends with the certificate that it was opened with.
func TestAdminTLSEndsAtNotAfter(t *testing.T) {
	p := newPKI(t)
	n, _ := p.secured(t)
	var conn *tls.Conn
	var shown *certs.Credentials
	waitFor(t, "connected in time", func() bool { // on a slow machine it has expired before
		shown = p.as(t, "prod-eu", heliograph.RoleOperator, "short", 2*time.Second)
		c, err := tls.Dial("tcp", n.Addrs().AdminTLS, shown.AdminTLS(adminALPN, "prod-eu"))
		if err != nil {
			return false
		}
		if err := c.SetDeadline(time.Now().Add(waitLimit)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: helio\r\n\r\n"); err != nil {
			c.Close()
			return false
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			c.Close()
			return false
		}
		resp.Body.Close()
		conn = c
		return true
	})
	defer conn.Close()
	_, err := io.Copy(io.Discard, conn)
	if err != nil || time.Now().Before(shown.NotAfter()) {
		t.Errorf("the connection ended %s before the certificate, with %v; want its end at NotAfter", time.Until(shown.NotAfter()), err)
	}
}

// A renewed certificate is shown to the next operator, without a restart.
func TestAdminTLSReloads(t *testing.T) {
	p := newPKI(t)
	n, _ := p.secured(t)
	operator := p.as(t, "prod-eu", heliograph.RoleOperator, "alice", 0)
	serial := func() string {
		conn, err := tls.Dial("tcp", n.Addrs().AdminTLS, operator.AdminTLS(adminALPN, "prod-eu"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	p.as(t, "prod-eu", heliograph.RoleMirror, "eu1", 0) // issues it again
	waitFor(t, "renewed", func() bool { return serial() != before })
}

// A page of somebody else cannot use a browser's certificate.
func TestAdminRefusesOtherSites(t *testing.T) {
	p := newPKI(t)
	n, log := p.secured(t)
	conf := p.as(t, "prod-eu", heliograph.RoleOperator, "alice", 0).AdminTLS(adminALPN, "prod-eu")
	for name, header := range map[string]http.Header{
		"fetched": {"Sec-Fetch-Site": {"cross-site"}},
		"origin":  {"Origin": {"https://elsewhere.example"}},
	} {
		if code, body, err := send(t, n.Addrs().AdminTLS, conf, http.MethodPost, "/v1/resync", header); err != nil || code != http.StatusForbidden {
			t.Errorf("%s: %d %q, %v", name, code, body, err)
		}
	}
	if audits := log.audits(); len(audits) != 0 {
		t.Errorf("audit lines %q", audits)
	}
}

// Those who hold connections open keep nobody out for good.
func TestAdminBoundsConnections(t *testing.T) {
	n, _ := newPKI(t).secured(t)
	held := make([]net.Conn, 0, node.AdminConnections)
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range node.AdminConnections {
		c, err := net.Dial("tcp", n.Addrs().Admin)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	status := func() error {
		_, _, err := send(t, n.Addrs().Admin, nil, http.MethodGet, "/v1/status", nil)
		return err
	}
	waitFor(t, "refused", func() bool { return status() != nil })
	if _, _, err := send(t, n.Addrs().Socket, nil, http.MethodGet, "/v1/status", nil); err != nil {
		t.Errorf("the socket is full, too: %v", err)
	}
	held[0].Close()
	waitFor(t, "answered again", func() bool { return status() == nil })
}

// A node does not begin to listen with a certificate that no operator could accept.
func TestAdminTLSNeedsADialledCertificate(t *testing.T) {
	p := newPKI(t)
	cfg := p.mirror(t, strings.TrimPrefix(nobody, "http://"))
	cfg.ListenAdminTLS = "127.0.0.1:0"
	n, err := node.Open(cfg)
	if err == nil {
		n.Close()
		t.Fatal("it was opened")
	}
	if want := "loaded for being dialled"; !strings.Contains(err.Error(), want) {
		t.Errorf("got %q, want %q", err, want)
	}
	cfg.Credentials, cfg.CredentialsErr = nil, errors.New("the certificate has expired")
	if _, err := node.Open(cfg); !errors.Is(err, cfg.CredentialsErr) {
		t.Errorf("got %v, want %v", err, cfg.CredentialsErr)
	}
}
