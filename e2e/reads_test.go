package e2e_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

func read(t *testing.T, client *clientv3.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := client.Get(ctx, "k")
	return err
}

// secureClient is a client of a node that serves over TLS.
func secureClient(t *testing.T, n *heliotest.Node, conf *tls.Config) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{strings.Replace(n.Clients, "http:", "https:", 1)}, TLS: conf, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func refused(err error) bool {
	return status.Code(err) == codes.PermissionDenied && strings.Contains(err.Error(), "--reads=")
}

// A mirror is not the hole in its source's access control: when that goes on,
// reads and watches end, down the chain, unless somebody has said who may read.
func TestReadsWhenTheSourceHasAuth(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{TLS: true})
	ca, cert, key := etcd.TLSFiles()
	if _, err := etcd.Client(t).Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints(), "--etcd-cacert", ca, "--etcd-cert", cert, "--etcd-key", key,
		"--etcd-user", "root", "--etcd-password-file", password)
	relay := pki.Mirror("prod-eu", source, true)
	leaf := pki.Mirror("prod-asia", relay, false)
	anyone := pki.Mirror("prod-any", source, false, "--reads", "anyone")
	chosen := pki.Mirror("prod-cert", source, false, "--reads", "client-certificate",
		"--client-cert", cert, "--client-key", key, "--client-ca", ca)
	for _, n := range []*heliotest.Node{source, leaf, anyone, chosen} {
		n.WaitFollowing()
	}
	says := func(n *heliotest.Node, want string) {
		t.Helper()
		n.WaitStatus("saying that reads are "+want, 20*time.Second, func(s heliograph.Status) bool { return strings.HasPrefix(s.Reads, want) })
	}
	says(leaf, "anyone")
	says(chosen, "client-certificate")
	client := leaf.Client()
	if err := read(t, client); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := client.Watch(ctx, "k", clientv3.WithCreatedNotify())
	if resp := <-watch; !resp.Created {
		t.Fatalf("%+v", resp)
	}

	etcd.EnableAuth(t, "secret")
	for _, n := range []*heliotest.Node{source, relay, leaf} {
		says(n, "refused: the source has access control on")
		if err := read(t, n.Client()); !refused(err) {
			t.Errorf("%s: a read ends with %v", n.Name(), err)
		}
		if !strings.Contains(n.Log(), `msg="reads by etcd clients" reads="refused: `) {
			t.Errorf("%s does not log it", n.Name())
		}
	}
	select {
	case resp := <-watch:
		if err := resp.Err(); err == nil || !strings.Contains(err.Error(), "access control") {
			t.Errorf("the watch ends with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the watch goes on")
	}
	leaf.Restart()
	if err := read(t, leaf.Client()); !refused(err) {
		t.Errorf("restarted: a read ends with %v", err)
	}
	source.WaitFollowing() // it has been locked out, and has logged in again
	says(anyone, "anyone")
	anyone.WaitFollowing()
	chosen.WaitFollowing()
	if err := read(t, anyone.Client()); err != nil {
		t.Errorf("--reads=anyone: %v", err)
	}
	if err := read(t, secureClient(t, chosen, etcd.TLS())); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	bare := etcd.TLS()
	bare.Certificates = nil
	if err := read(t, secureClient(t, chosen, bare)); !refused(err) {
		t.Errorf("without a certificate: %v", err)
	}

	if _, err := etcd.Client(t).AuthDisable(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(leaf, "anyone")
	if err := read(t, leaf.Client()); err != nil {
		t.Errorf("with access control off again: %v", err)
	}
}

// A source node that is locked out of its etcd by access control knows what that
// means for its own clients. One that has never heard of it lets nobody in yet.
func TestReadsOfALockedOutSource(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	source.WaitFollowing()
	if err := read(t, source.Client()); err != nil {
		t.Fatal(err)
	}
	orphan := pki.Mirror("prod-eu", source, false)
	orphan.WaitFollowing()
	etcd.EnableAuth(t, "secret")
	for _, n := range []*heliotest.Node{source, orphan} {
		n.WaitStatus("refusing", 20*time.Second, func(s heliograph.Status) bool { return strings.HasPrefix(s.Reads, "refused: the source has") })
		if err := read(t, n.Client()); !refused(err) {
			t.Errorf("%s: a read ends with %v", n.Name(), err)
		}
	}
	source.Kill()
	late := pki.Mirror("prod-asia", source, false)
	late.WaitStatus("undecided", 20*time.Second, func(s heliograph.Status) bool { return strings.Contains(s.Reads, "is not known yet") })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	// The client library tries again for as long as it may.
	if _, err := late.Client().Get(ctx, "k"); err == nil {
		t.Error("a mirror that has heard nothing lets somebody in")
	}
}

// /health and /version on the clients' port are etcd's, in clear text and over
// TLS.
func TestHealthAndVersionAreEtcds(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		etcd := etcdtest.Start(t, etcdtest.Options{TLS: secure})
		pki := heliotest.NewPKI(t)
		var flags []string
		web := &http.Transport{ForceAttemptHTTP2: true}
		if secure {
			ca, cert, key := etcd.TLSFiles()
			flags = []string{"--etcd-cacert", ca, "--etcd-cert", cert, "--etcd-key", key, "--client-cert", cert, "--client-key", key}
			web.TLSClientConfig = etcd.TLS()
		}
		t.Cleanup(web.CloseIdleConnections)
		source := pki.Source("prod-us", etcd.Endpoints(), flags...)
		source.WaitFollowing()
		base := source.Clients
		if secure {
			base = strings.Replace(base, "http:", "https:", 1)
		}
		for _, path := range []string{"/version", "/health", "/health?serializable=true"} {
			wantCode, want := fetch(t, web, etcd.Endpoints()[0]+path)
			code, got := fetch(t, web, base+path)
			if code != wantCode || got != want {
				t.Errorf("%s: %d %s, etcd says %d %s", path, code, got, wantCode, want)
			}
		}
		if !secure {
			continue
		}
		if err := read(t, secureClient(t, source, etcd.TLS())); err != nil {
			t.Error(err)
		}
	}
}

func fetch(t *testing.T, web *http.Transport, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: web, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
