package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const alpn = "heliograph/1"

// newCA makes a CA in a folder of its own and returns the folder.
func newCA(t *testing.T, domain string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := certs.Init(dir, domain); err != nil {
		t.Fatal(err)
	}
	return dir
}

func issue(t *testing.T, dir string, cluster heliograph.ClusterID, role heliograph.Role, name string) certs.Files {
	t.Helper()
	files, err := certs.Issue(certs.IssueConfig{Dir: dir, Cluster: cluster, Role: role, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func load(t *testing.T, files certs.Files) *certs.Credentials {
	t.Helper()
	c, err := certs.Load(files, certs.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// forge signs a certificate that Issue would not: edit changes what a good one
// of the identity has. It returns files in a new folder, with dir's CA.
func forge(t *testing.T, dir, identity string, edit func(*x509.Certificate)) certs.Files {
	t.Helper()
	uri, err := url.Parse(identity)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"prod-us"},
		URIs:        []*url.URL{uri},
	}
	if edit != nil {
		edit(template)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(decode(t, filepath.Join(dir, certs.CAKeyFile)))
	if err != nil {
		t.Fatal(err)
	}
	ca := parse(t, filepath.Join(dir, certs.CACertFile))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	files := certs.Files{
		Cert: filepath.Join(out, "forged.crt"),
		Key:  filepath.Join(out, "forged.key"),
		CA:   filepath.Join(dir, certs.CACertFile),
	}
	write(t, files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return files
}

// forged returns what forge made as a tls.Certificate, unchecked.
func forged(t *testing.T, files certs.Files) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func decode(t *testing.T, path string) []byte {
	t.Helper()
	block, _ := pem.Decode(read(t, path))
	if block == nil {
		t.Fatalf("%s holds no PEM", path)
	}
	return block.Bytes
}

func parse(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(decode(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// handshake runs a whole TLS connection, one byte each way, and returns what
// each side saw of it. In TLS 1.3 a client learns only from its first read that
// its certificate was refused.
func handshake(server, client *tls.Config) (sees struct{ server, client tls.ConnectionState }, serverErr, clientErr error) {
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer a.Close()
		conn := tls.Server(a, server)
		if serverErr = conn.Handshake(); serverErr == nil {
			sees.server = conn.ConnectionState()
			_, serverErr = conn.Write([]byte{1})
		}
	}()
	conn := tls.Client(b, client)
	if clientErr = conn.Handshake(); clientErr == nil {
		sees.client = conn.ConnectionState()
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
	}
	b.Close()
	<-done
	return sees, serverErr, clientErr
}

// wantError fails unless err says all of the parts.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one that says %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %q, want it to say %q", err, part)
		}
	}
}
