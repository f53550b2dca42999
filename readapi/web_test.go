package readapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heliograph/heliograph/readapi"
)

// page gets a page and returns its code and body.
func page(tb testing.TB, client *http.Client, url string) (int, string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(call(tb), http.MethodGet, url, nil)
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

func webClient(tb testing.TB, conf *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestHealthAndVersion(t *testing.T) {
	r := emptyReplica(t)
	var lost atomic.Bool
	srv := serve(t, r, func(c *readapi.Config) {
		c.Version = func() string { return "3.5.21" }
		c.Admit = func(context.Context) error { return errors.New("nobody is admitted") }
		c.UpstreamAlive = func() error {
			if lost.Load() {
				return errors.New("no route")
			}
			return nil
		}
	})
	client := webClient(t, nil)
	base := "http://" + srv.addr
	want := func(path string, code int, body string) {
		t.Helper()
		gotCode, got := page(t, client, base+path)
		if gotCode != code || !strings.HasPrefix(got, body) {
			t.Errorf("%s: %d %s, want %d %s", path, gotCode, got, code, body)
		}
	}
	want("/health", 503, `{"health":"false","reason":"RANGE ERROR:`)
	r.open(t.TempDir() + "/db")
	want("/health", 200, `{"health":"true","reason":""}`)
	want("/version", 200, `{"etcdserver":"3.5.21","etcdcluster":"3.5.0","storage":"unknown"}`)
	want("/v3/kv/range", 404, "")
	lost.Store(true)
	want("/health", 503, `{"health":"false","reason":"RANGE ERROR:the source, cluster prod-us (10.0.0.5:7400), cannot be reached`)
	want("/health?serializable=true", 200, `{"health":"true","reason":""}`)
	resp, err := client.Post(base+"/health", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /health: %s", resp.Status)
	}
}

// issuer makes certificates.
type issuer struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newIssuer(tb testing.TB) *issuer {
	i := &issuer{tb: tb, pool: x509.NewCertPool()}
	pair := i.issue("ca", true)
	i.cert, i.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	i.pool.AddCert(i.cert)
	return i
}

func (i *issuer) issue(name string, ca bool) tls.Certificate {
	i.tb.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.tb.Fatal(err)
	}
	parent, signer := tmpl, key
	if i.cert != nil {
		parent, signer = i.cert, i.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		i.tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		i.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Over TLS the same port speaks gRPC and HTTP/1, to clients of all habits, and
// the caller's certificate is known.
func TestTLS(t *testing.T) {
	ca := newIssuer(t)
	r := newReplica(t)
	r.put("a", "1")
	conf := &tls.Config{Certificates: []tls.Certificate{ca.issue("server", false)}, ClientCAs: ca.pool, ClientAuth: tls.VerifyClientCertIfGiven}
	var who atomic.Value
	srv := serve(t, r, func(c *readapi.Config) {
		c.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return conf, nil }}
		c.Admit = func(ctx context.Context) error {
			name := "nobody"
			if cert := readapi.ClientCertificate(ctx); cert != nil {
				name = cert.Subject.CommonName
			}
			who.Store(name)
			return nil
		}
	})
	for name, test := range map[string]struct {
		certs  []tls.Certificate
		protos []string
		want   string
	}{
		"plain":       {nil, nil, "nobody"},
		"certificate": {[]tls.Certificate{ca.issue("alice", false)}, nil, "alice"},
		"both names":  {nil, []string{"h2", "http/1.1"}, "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			mine := &tls.Config{RootCAs: ca.pool, Certificates: test.certs, NextProtos: test.protos}
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + srv.addr}, TLS: mine, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			resp, err := c.Get(call(t), "a")
			if err != nil || string(resp.Kvs[0].Value) != "1" {
				t.Errorf("%v, %v", resp, err)
			}
			if got := who.Load(); got != test.want {
				t.Errorf("the caller is %v, want %s", got, test.want)
			}
			code, body := page(t, webClient(t, &tls.Config{RootCAs: ca.pool, Certificates: test.certs}), "https://"+srv.addr+"/health")
			if code != 200 || body != `{"health":"true","reason":""}` {
				t.Errorf("/health: %d %s", code, body)
			}
		})
	}
	stranger := newIssuer(t)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + srv.addr}, Logger: zap.NewNop(),
		TLS: &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{stranger.issue("mallory", false)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Get(within(t, time.Second), "a"); err == nil {
		t.Error("a certificate of another CA is accepted")
	}
	if _, err := http.Get("http://" + srv.addr + "/health"); err == nil { //nolint:noctx // refused at once
		t.Error("clear text is accepted")
	}
}

// A refusal has its code and words, and ends the streams that are open.
func TestAdmission(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1")
	var refusal atomic.Pointer[error]
	srv := serve(t, r, func(c *readapi.Config) {
		c.LeaderInterval = 10 * time.Millisecond
		c.Admit = func(context.Context) error {
			if err := refusal.Load(); err != nil {
				return *err
			}
			return nil
		}
	})
	client := srv.client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := client.Watch(ctx, "a", clientv3.WithCreatedNotify())
	if resp := <-watch; !resp.Created {
		t.Fatalf("%+v", resp)
	}
	refuse := func(err error) { refusal.Store(&err) }
	refuse(errors.New("the source has access control on"))
	select {
	case resp := <-watch:
		if status.Code(resp.Err()) != codes.PermissionDenied && !strings.Contains(fmt.Sprint(resp.Err()), "access control on") {
			t.Errorf("the watch ends with %v", resp.Err())
		}
	case <-call(t).Done():
		t.Fatal("the watch goes on")
	}
	kv := srv.conn(t)
	get := func() error {
		_, err := pb.NewKVClient(kv).Range(call(t), &pb.RangeRequest{Key: []byte("a")})
		return err
	}
	if err := get(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "access control on") {
		t.Errorf("got %v", err)
	}
	refuse(fmt.Errorf("whether the source has access control on is %w", readapi.ErrUndecided))
	if err := get(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "is not known yet") {
		t.Errorf("got %v", err)
	}
	refusal.Store(nil)
	if err := get(); err != nil {
		t.Error(err)
	}
}

// Connections that say nothing end with the server, at once.
func TestSilentConnectionsEnd(t *testing.T) {
	srv := serve(t, newReplica(t))
	var conns []net.Conn
	for _, said := range []string{"", "PR", "PRI * HTTP/2.0\r\n", "GET /health"} {
		c, err := net.Dial("tcp", srv.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(said)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if code, _ := page(t, webClient(t, nil), "http://"+srv.addr+"/health"); code != 200 {
		t.Errorf("/health: %d", code)
	}
	began := time.Now()
	if err := srv.stop(); err != errStopped {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the server took %s to stop", took)
	}
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connection %d stays open", i)
		}
	}
}
