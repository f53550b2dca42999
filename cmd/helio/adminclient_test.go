package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/node"
)

// adminPKI is a folder of a CA, with the certificate of an operator of prod-eu.
type adminPKI struct {
	dir   string
	alice certs.Files
}

func newAdminPKI(t *testing.T) adminPKI {
	t.Helper()
	p := adminPKI{dir: newCA(t)}
	p.alice = p.issue(t, heliograph.RoleOperator, "alice")
	return p
}

func (p adminPKI) issue(t *testing.T, role heliograph.Role, name string) certs.Files {
	t.Helper()
	files, err := certs.Issue(certs.IssueConfig{Dir: p.dir, Cluster: "prod-eu", Role: role, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sign returns a certificate that helio would not issue: edit changes what a good
// one of a mirror has.
func (p adminPKI) sign(t *testing.T, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(p.dir, certs.CACertFile), filepath.Join(p.dir, certs.CAKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"prod-eu"},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "heliograph.local", Path: "/heliograph/prod-eu/mirror/eu1"}},
	}
	edit(c)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve serves h as a node that shows pair, and returns its --admin.
func (p adminPKI) serve(t *testing.T, pair tls.Certificate, h http.HandlerFunc) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, certs.CACertFile))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

// ask asks a node as alice.
func (p adminPKI) ask(t *testing.T, admin string, patience time.Duration) ([]byte, error) {
	t.Helper()
	client, err := (&adminFlags{admin: admin, files: p.alice}).client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	return client.ask(t.Context(), http.MethodPost, "/v1/resync", map[string]bool{"force": true}, patience)
}

// Whatever does not let an operator in says what it is and the way out.
func TestAdminClientExplains(t *testing.T) {
	p := newAdminPKI(t)
	fine := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }
	good := func(*x509.Certificate) {}
	for _, test := range []struct {
		name string
		edit func(*x509.Certificate)
		h    http.HandlerFunc
		want string // "": it works
	}{
		{"good", good, fine, ""},
		{"for dialling only", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, fine,
			"is for dialling only, and not for being dialled: issue it again with helio certs issue --cluster prod-eu --role mirror --name eu1"},
		{"as mirrors had it once", func(c *x509.Certificate) { c.ExtKeyUsage, c.DNSNames = c.ExtKeyUsage[:1], nil }, fine, "is for dialling only"},
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, fine, "is not valid now: issue it again, and check the clocks"},
		{"no node", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"shop.example"} }, fine, "is no helio node: its certificate says nothing of one"},
		{"no node with our name", func(c *x509.Certificate) { c.URIs = nil }, fine, "0 URI SANs"},
		{"an operator's", func(c *x509.Certificate) { c.URIs[0].Path = "/heliograph/prod-eu/operator/eve" }, fine, "is an operator and no node: check the address"},
		{"silent", good, func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // the server looks for the client's end only after that
			<-r.Context().Done()
		}, "does not answer within 200ms"},
		{"endless", good, func(w http.ResponseWriter, r *http.Request) {
			for chunk := make([]byte, 1<<20); r.Context().Err() == nil; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "answers more than 8388608 bytes"},
		{"elsewhere", good, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) }, "302 Found"},
		{"refused", good, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "it is not to be", http.StatusConflict) }, "it is not to be"},
		{"refused by no node", good, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusBadRequest)
		}, "answers 400 Bad Request"},
		{"of another time", good, http.NotFound, "is it a helio node, and one that knows this?"},
	} {
		t.Run(test.name, func(t *testing.T) {
			patience := statusWait
			if test.name == "silent" {
				patience = 200 * time.Millisecond
			}
			body, err := p.ask(t, p.serve(t, p.sign(t, test.edit), test.h), patience)
			switch {
			case test.want == "" && (err != nil || string(body) != "ok"):
				t.Errorf("%q, %v", body, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			case test.name == "refused" && err.Error() != test.want:
				t.Errorf("got %v, want %q alone", err, test.want)
			}
		})
	}
}

// Who asked for a promotion and has no answer is told that it may happen all the same,
// unless the node cannot have heard of it.
func TestPromotionWithoutAnAnswer(t *testing.T) {
	p := newAdminPKI(t)
	good := p.sign(t, func(*x509.Certificate) {})
	const mayBe = "the node may be promoted all the same"
	ctx, interrupt := context.WithCancel(t.Context())
	for _, test := range []struct {
		name, admin, want string
		heard             bool
	}{
		{"interrupted", p.serve(t, good, func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/promote" {
				io.Copy(io.Discard, r.Body)
				interrupt()
				<-r.Context().Done()
			}
		}), "interrupted before https://", true},
		{"interrupted before", p.serve(t, good, func(http.ResponseWriter, *http.Request) {}), "interrupted before https://", false},
		{"ended", p.serve(t, good, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "ended the connection, ", true},
		{"no TLS", silent(t), "ended the connection before it showed a certificate: https is for a node's --listen-admin-tls", false},
		{"nobody", "https://127.0.0.1:1", "no node answers at", false},
		{"no socket", "unix:" + filepath.Join(t.TempDir(), "admin.sock"), "there is no socket at", false},
		{"a socket that was left", "unix:" + leftSocket(t), "no node listens at", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, err := (&adminFlags{admin: test.admin, files: p.alice}).client()
			if err != nil {
				t.Fatal(err)
			}
			defer client.close()
			ctx := ctx
			if !strings.HasPrefix(test.name, "interrupted") {
				ctx = t.Context()
			}
			err = runPromote(ctx, client, stdio{out: io.Discard, err: io.Discard}, node.PromoteOptions{}, "table")
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), mayBe) != test.heard {
				t.Errorf("got %v, want %q, heard %v", err, test.want, test.heard)
			}
		})
	}
}

// silent ends every connection without a word, and returns its --admin.
func silent(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	t.Cleanup(func() { lis.Close(); group.Wait() })
	group.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096)) // what is unread would make it a reset
			conn.Close()
		}
	})
	return "https://" + lis.Addr().String()
}

// leftSocket is a socket of a node that was killed.
func leftSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	lis.Close()
	return path
}

// A refusal keeps the code and the body, for commands that know what is in it.
func TestAdminRefusal(t *testing.T) {
	p := newAdminPKI(t)
	_, err := p.ask(t, p.serve(t, p.sign(t, func(*x509.Certificate) {}), func(w http.ResponseWriter, r *http.Request) {
		in, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%q, %v", in, err)
		}
		http.Error(w, string(in), http.StatusConflict)
	}), statusWait)
	refused, ok := errors.AsType[*adminRefusal](err)
	if !ok || refused.code != http.StatusConflict || string(refused.body) != "{\"force\":true}\n" {
		t.Errorf("got %v", err)
	}
}

// --watch outlives a certificate that is renewed meanwhile: each connection shows
// what the files hold then.
func TestAdminClientReadsFilesAnew(t *testing.T) {
	p := newAdminPKI(t)
	shown := make(chan string, 2)
	admin := p.serve(t, p.sign(t, func(*x509.Certificate) {}), func(_ http.ResponseWriter, r *http.Request) {
		shown <- string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.TLS.PeerCertificates[0].Raw}))
	})
	client, err := (&adminFlags{admin: admin, files: p.alice}).client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	for range 2 {
		if _, err := client.ask(t.Context(), http.MethodGet, "/v1/status", nil, statusWait); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(p.alice.Cert)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-shown; got != string(want) {
			t.Error("another certificate was shown than the one in the file")
		}
		client.close() // the connection, as its end does
		p.issue(t, heliograph.RoleOperator, "alice")
	}
}
