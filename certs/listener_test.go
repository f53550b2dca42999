package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
)

func TestLoadListenerRefuses(t *testing.T) {
	ca := newCA(t, "")
	good := issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
	second := issue(t, ca, "prod-us", heliograph.RoleSource, "n2")
	late := forge(t, ca, sourceURI, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	for _, test := range []struct {
		name  string
		files certs.ListenerFiles
		want  []string
	}{
		{"no key", certs.ListenerFiles{Cert: good.Cert}, []string{"key file"}},
		{"key of another", certs.ListenerFiles{Cert: good.Cert, Key: second.Key}, []string{"are no pair"}},
		{"expired", certs.ListenerFiles{Cert: late.Cert, Key: late.Key}, []string{"expired at", "replace it"}},
		{"no CA there", certs.ListenerFiles{Cert: good.Cert, Key: good.Key, CA: good.CA + "x"}, []string{"CA file", "no such file"}},
		{"leaf as CA", certs.ListenerFiles{Cert: good.Cert, Key: good.Key, CA: good.Cert}, []string{"is not a CA"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := certs.LoadListener(test.files, certs.Config{})
			wantError(t, err, test.want...)
		})
	}
}

// A client may show a certificate of the CA, or none; one of another CA is
// refused. Without a CA nobody is asked.
func TestListenerTLS(t *testing.T) {
	ca, other := newCA(t, ""), newCA(t, "")
	files := issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
	client := issue(t, ca, "prod-eu", heliograph.RoleMirror, "m1")
	stranger := issue(t, other, "prod-eu", heliograph.RoleMirror, "m1")
	pool := x509.NewCertPool()
	pool.AddCert(parse(t, files.CA))
	conf := func(shown certs.Files) *tls.Config {
		c := &tls.Config{RootCAs: pool, ServerName: "prod-us"}
		if shown.Cert != "" {
			pair, err := tls.LoadX509KeyPair(shown.Cert, shown.Key)
			if err != nil {
				t.Fatal(err)
			}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		return c
	}
	asks, err := certs.LoadListener(certs.ListenerFiles(files), certs.Config{})
	if err != nil {
		t.Fatal(err)
	}
	silent, err := certs.LoadListener(certs.ListenerFiles{Cert: files.Cert, Key: files.Key}, certs.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if !asks.VerifiesClients() || silent.VerifiesClients() {
		t.Error("who is asked is not said")
	}
	for _, test := range []struct {
		name     string
		listener *certs.Listener
		shown    certs.Files
		verified bool
		refused  bool
	}{
		{"with", asks, client, true, false},
		{"without", asks, certs.Files{}, false, false},
		{"stranger", asks, stranger, false, true},
		{"not asked", silent, stranger, false, false},
	} {
		sees, serverErr, _ := handshake(test.listener.TLS(), conf(test.shown))
		if (serverErr != nil) != test.refused || serverErr == nil && (len(sees.server.VerifiedChains) > 0) != test.verified {
			t.Errorf("%s: %v, %d chains", test.name, serverErr, len(sees.server.VerifiedChains))
		}
	}
}

// Renewed files take effect at the next handshake; bad ones change nothing.
func TestListenerReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "")
		first := issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
		second := issue(t, ca, "prod-us", heliograph.RoleSource, "n2")
		dir := t.TempDir()
		files := certs.ListenerFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
		use := func(f certs.Files) {
			write(t, files.Cert, read(t, f.Cert))
			write(t, files.Key, read(t, f.Key))
		}
		use(first)
		reg := prometheus.NewRegistry()
		l, err := certs.LoadListener(files, certs.Config{Poll: time.Second, Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		if families, err := reg.Gather(); err != nil || len(families) != 1 {
			t.Errorf("%d metrics, %v", len(families), err)
		}
		conf := l.TLS()
		pool := x509.NewCertPool()
		pool.AddCert(parse(t, first.CA))
		shown := func() string {
			sees, serverErr, clientErr := handshake(conf, &tls.Config{RootCAs: pool, ServerName: "prod-us"})
			if serverErr != nil || clientErr != nil {
				t.Fatal(serverErr, clientErr)
			}
			return string(sees.client.PeerCertificates[0].Raw)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		before := shown()
		write(t, files.Key, read(t, second.Key)) // half of a pair
		time.Sleep(3 * time.Second)              // fake time
		if shown() != before {
			t.Error("half of a pair took effect")
		}
		use(second)
		time.Sleep(3 * time.Second) // fake time
		if shown() != string(parse(t, second.Cert).Raw) {
			t.Error("the renewed pair did not take effect")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}
