package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/prometheus/client_golang/prometheus"
)

const sourceURI = "spiffe://heliograph.local/heliograph/prod-us/source/n1"

func TestLoadRefuses(t *testing.T) {
	ca := newCA(t, "")
	other := newCA(t, "")
	good := issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
	second := issue(t, ca, "prod-us", heliograph.RoleSource, "n2")
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, []byte(content))
		return path
	}
	with := func(edit func(*certs.Files)) certs.Files {
		f := good
		edit(&f)
		return f
	}
	whole := string(read(t, good.CA))
	for _, test := range []struct {
		name  string
		files certs.Files
		want  []string
	}{
		{"nothing", certs.Files{}, []string{"no certificate file is named"}},
		{"no CA", with(func(f *certs.Files) { f.CA = "" }), []string{"no CA file is named"}},
		{"missing key", with(func(f *certs.Files) { f.Key = good.Key + "x" }), []string{"key file", "no such file"}},
		{"huge", with(func(f *certs.Files) { f.CA = file(strings.Repeat("\n", 1<<20)) }), []string{"larger than"}},
		{"not PEM", with(func(f *certs.Files) { f.Cert = file("hello") }), []string{"no PEM certificate"}},
		{"bad DER", with(func(f *certs.Files) { f.Cert = file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") }), []string{"certificate 1"}},
		{"CA cut off", with(func(f *certs.Files) { f.CA = file(whole + whole[:len(whole)/2]) }), []string{"damaged or cut off: 1 of 2"}},
		{"key of another", with(func(f *certs.Files) { f.Key = second.Key }), []string{"are no pair"}},
		{"CA as certificate", certs.Files{Cert: good.CA, Key: filepath.Join(ca, "ca.key"), CA: good.CA}, []string{"certificate of a CA"}},
		{"leaf as CA", with(func(f *certs.Files) { f.CA = good.Cert }), []string{"certificate 1 is not a CA", "helio certs init"}},
		{"foreign CA", with(func(f *certs.Files) { f.CA = filepath.Join(other, "ca.crt") }), []string{"not signed by a CA in", "use the CA that issued it"}},
		{"no identity", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.URIs = nil }), []string{"0 URI SANs"}},
		{"two URI SANs", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), []string{"2 URI SANs"}},
		{"other URI", forge(t, ca, "spiffe://heliograph.local/ns/default", nil), []string{"want spiffe://"}},
		{"escaped URI", forge(t, ca, "spiffe://heliograph.local/heliograph/prod-us/source/n%31", nil), []string{"n%31"}},
		{"URI with query", forge(t, ca, sourceURI+"?x", nil), []string{`'?'`}},
		{"expired", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), []string{"expired at", "issue it again"}},
		{"not valid yet", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), []string{"not valid before", "check the clock"}},
		{"domain the CA may not sign", forge(t, ca, "spiffe://example.org/heliograph/prod-us/source/n1", nil), []string{"not permitted"}},
		{"no server usage", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), []string{"lacks the extended key usage for being dialled", "--cluster prod-us --role source --name n1"}},
		{"no server name", forge(t, ca, sourceURI, func(c *x509.Certificate) { c.DNSNames = []string{"prod-eu"} }), []string{`its cluster "prod-us"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := certs.Load(test.files, certs.Config{})
			wantError(t, err, test.want...)
		})
	}
	_, err := certs.Load(good, certs.Config{Poll: -1})
	wantError(t, err, "Poll")
}

// clientOnly is what Issue used to give mirrors: good for dialling, and no more.
func clientOnly(c *x509.Certificate) { c.ExtKeyUsage, c.DNSNames = c.ExtKeyUsage[:1], nil }

// A mirror's certificate of old goes on to work for what it was issued for. One that
// is to be dialled needs a new one, at the start and at every reload.
func TestDialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "")
		old := forge(t, ca, mirrorURI, clientOnly)
		if c := load(t, old); c.Dialled() {
			t.Error("a certificate for dialling only counts as one for being dialled")
		}
		dialled := certs.Config{Dialled: true}
		_, err := certs.Load(old, dialled)
		wantError(t, err, "lacks the extended key usage for being dialled", "helio certs issue --cluster prod-eu --role mirror --name m1")
		_, err = certs.Load(forge(t, ca, mirrorURI, func(c *x509.Certificate) { c.DNSNames = nil }), dialled)
		wantError(t, err, `its cluster "prod-eu" as a DNS name`, "issue it again")
		_, err = certs.Load(issue(t, ca, "prod-eu", heliograph.RoleOperator, "ops"), dialled)
		wantError(t, err, "for an operator", "certificate of a node")

		files := issue(t, ca, "prod-eu", heliograph.RoleMirror, "m1")
		var log bytes.Buffer
		c, err := certs.Load(files, certs.Config{Dialled: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil || !c.Dialled() {
			t.Fatalf("%v, or not for being dialled", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }() // waited for below
		held := c.NotAfter()
		write(t, files.Cert, read(t, old.Cert))
		write(t, files.Key, read(t, old.Key))
		poll()
		if !c.NotAfter().Equal(held) || !strings.Contains(log.String(), "being dialled") {
			t.Errorf("a certificate for dialling only was taken: %s", log.String())
		}
		cancel()
		<-done
	})
}

// In ten years and a day: the leaf is good, the CA that signed it is not.
func TestLoadRefusesExpiredCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "")
		files := forge(t, ca, sourceURI, func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(20, 0, 0) })
		if got, want := load(t, files).NotAfter(), parse(t, files.CA).NotAfter; !got.Equal(want) {
			t.Errorf("NotAfter: got %s, want that of the CA, %s", got, want)
		}
		time.Sleep(time.Until(time.Now().AddDate(10, 0, 1)))
		_, err := certs.Load(files, certs.Config{})
		wantError(t, err, "the CA that signed", "not valid at", "put a newer CA")
		_, err = certs.Issue(certs.IssueConfig{Dir: ca, Cluster: "prod-us", Role: heliograph.RoleSource, Name: "n2"})
		wantError(t, err, "has expired", "make a new one")
	})
}

// running is a node's credentials with Run at work, in fake time.
type running struct {
	*certs.Credentials
	log  bytes.Buffer // of warnings; read it only after poll
	regs *prometheus.Registry
}

func run(t *testing.T, files certs.Files) *running {
	t.Helper()
	r := &running{regs: prometheus.NewRegistry()}
	var err error
	r.Credentials, err = certs.Load(files, certs.Config{
		Log:     slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Metrics: r.regs,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context())) // t's own ends before its cleanups
	stopped := errors.New("stopped")
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel(stopped)
		if err := <-done; !errors.Is(err, stopped) {
			t.Errorf("Run returned %v, want the cause of its context", err)
		}
	})
	return r
}

// poll lets every Run look at its files once.
func poll() {
	time.Sleep(certs.DefaultPoll)
	synctest.Wait()
}

func (r *running) warnings() int { return strings.Count(r.log.String(), "\n") }

func (r *running) metric(t *testing.T, kind string) time.Time {
	t.Helper()
	families, err := r.regs.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "heliograph_certs_not_after_seconds" && m.GetLabel()[0].GetValue() == kind {
				return time.Unix(int64(m.GetGauge().GetValue()), 0)
			}
		}
	}
	t.Fatalf("no metric for %s", kind)
	return time.Time{}
}

// connects fails unless a mirror can follow the source with what both have now.
func connects(t *testing.T, source, mirror *certs.Credentials, server *tls.Config) (leaf *x509.Certificate) {
	t.Helper()
	sees, serverErr, clientErr := handshake(server, mirror.ClientTLS(alpn, "prod-us"))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if id, _, err := mirror.PeerIdentity(sees.client); err != nil || id != source.Identity() {
		t.Fatalf("the mirror sees %v, %v", id, err)
	}
	return sees.client.PeerCertificates[0]
}

// etcd#12385: a renewed leaf was used only after a restart.
func TestRotateLeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "")
		minute := func(cluster heliograph.ClusterID, role heliograph.Role, name string) certs.Files {
			files, err := certs.Issue(certs.IssueConfig{Dir: ca, Cluster: cluster, Role: role, Name: name, Lifetime: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			return files
		}
		files := minute("prod-us", heliograph.RoleSource, "n1")
		source, mirror := run(t, files), run(t, minute("prod-eu", heliograph.RoleMirror, "m1"))
		server := source.ServerTLS(alpn) // one configuration for good
		before := connects(t, source.Credentials, mirror.Credentials, server)

		// Until the first certificates are long over.
		for range 4 {
			time.Sleep(40 * time.Second)
			minute("prod-us", heliograph.RoleSource, "n1")
			minute("prod-eu", heliograph.RoleMirror, "m1")
			poll()
		}
		after := connects(t, source.Credentials, mirror.Credentials, server)
		if after.Equal(before) {
			t.Error("the old certificate is still served")
		}
		if want := parse(t, files.Cert).NotAfter; !source.NotAfter().Equal(want) || !source.metric(t, "leaf").Equal(want) {
			t.Errorf("NotAfter is %s, the metric %s, want %s", source.NotAfter(), source.metric(t, "leaf"), want)
		}
		if n := source.warnings() + mirror.warnings(); n != 0 {
			t.Errorf("%d warnings: %s %s", n, source.log.String(), mirror.log.String())
		}
	})
}

// etcd#11555: a changed CA bundle was not reloaded.
func TestRotateCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		oldCA := newCA(t, "")
		time.Sleep(365 * 24 * time.Hour)
		newCA := newCA(t, "")
		oldPEM, newPEM := read(t, filepath.Join(oldCA, "ca.crt")), read(t, filepath.Join(newCA, "ca.crt"))

		// Each node has a folder of its own, as on machines of their own.
		deploy := func(node certs.Files, issued certs.Files) {
			write(t, node.Cert, read(t, issued.Cert))
			write(t, node.Key, read(t, issued.Key))
		}
		place := func(issued certs.Files) certs.Files {
			dir := t.TempDir()
			node := certs.Files{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), CA: filepath.Join(dir, "ca")}
			deploy(node, issued)
			write(t, node.CA, oldPEM)
			return node
		}
		sourceFiles := place(issue(t, oldCA, "prod-us", heliograph.RoleSource, "n1"))
		mirrorFiles := place(issue(t, oldCA, "prod-eu", heliograph.RoleMirror, "m1"))
		source, mirror := run(t, sourceFiles), run(t, mirrorFiles)
		server := source.ServerTLS(alpn)
		both := slices.Concat(oldPEM, newPEM)
		for _, step := range []struct {
			name string
			do   func()
		}{
			{"as it was", func() {}},
			{"mirror believes both", func() { write(t, mirrorFiles.CA, both) }},
			{"source believes both", func() { write(t, sourceFiles.CA, both) }},
			{"source has a new leaf", func() { deploy(sourceFiles, issue(t, newCA, "prod-us", heliograph.RoleSource, "n1")) }},
			{"mirror has a new leaf", func() { deploy(mirrorFiles, issue(t, newCA, "prod-eu", heliograph.RoleMirror, "m1")) }},
			{"source forgets the old CA", func() { write(t, sourceFiles.CA, newPEM) }},
			{"mirror forgets the old CA", func() { write(t, mirrorFiles.CA, newPEM) }},
		} {
			step.do()
			poll()
			connects(t, source.Credentials, mirror.Credentials, server)
			if n := source.warnings() + mirror.warnings(); n != 0 {
				t.Fatalf("%s: %s %s", step.name, source.log.String(), mirror.log.String())
			}
		}
		if got, want := source.metric(t, "ca"), parse(t, filepath.Join(newCA, "ca.crt")).NotAfter; !got.Equal(want) {
			t.Errorf("metric of the CA: got %s, want %s", got, want)
		}
		// Who stayed with the old CA is out now.
		late := load(t, place(issue(t, oldCA, "prod-eu", heliograph.RoleMirror, "late")))
		cfg := late.ClientTLS(alpn, "prod-us")
		cfg.RootCAs.AddCert(parse(t, filepath.Join(newCA, "ca.crt")))
		_, serverErr, _ := handshake(server, cfg)
		wantError(t, serverErr, "unknown authority")
	})
}

func TestBadFilesKeepTheLastGood(t *testing.T) {
	foreignCA := newCA(t, "")
	for _, test := range []struct {
		name string
		do   func(t *testing.T, ca string, files certs.Files)
		want string
	}{
		{"gone", func(t *testing.T, ca string, files certs.Files) {
			if err := os.Remove(files.Cert); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		{"half written", func(t *testing.T, ca string, files certs.Files) {
			write(t, files.Cert, read(t, files.Cert)[:100])
		}, "cut off"},
		{"key not yet copied", func(t *testing.T, ca string, files certs.Files) {
			key := read(t, files.Key)
			issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
			write(t, files.Key, key)
		}, "are no pair"},
		{"CA that did not sign it", func(t *testing.T, ca string, files certs.Files) {
			write(t, files.CA, read(t, filepath.Join(foreignCA, "ca.crt")))
		}, "not signed by a CA"},
		{"expired", func(t *testing.T, ca string, files certs.Files) {
			f := forge(t, ca, sourceURI, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
			write(t, files.Key, read(t, f.Key))
			write(t, files.Cert, read(t, f.Cert))
		}, "expired at"},
		{"another identity", func(t *testing.T, ca string, files certs.Files) {
			f := issue(t, ca, "prod-us", heliograph.RoleSource, "n2")
			write(t, files.Key, read(t, f.Key))
			write(t, files.Cert, read(t, f.Cert))
		}, "restart the node"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newCA(t, "")
				files := issue(t, ca, "prod-us", heliograph.RoleSource, "n1")
				caPEM, ownLeaf := read(t, files.CA), parse(t, files.Cert)
				source := run(t, files)
				mirror := load(t, issue(t, ca, "prod-eu", heliograph.RoleMirror, "m1"))
				server := source.ServerTLS(alpn)

				test.do(t, ca, files)
				for range 3 {
					poll()
				}
				if leaf := connects(t, source.Credentials, mirror, server); !leaf.Equal(ownLeaf) {
					t.Error("another certificate is served than the last good one")
				}
				if source.warnings() != 1 || !strings.Contains(source.log.String(), test.want) {
					t.Errorf("want one warning that says %q, got %q", test.want, source.log.String())
				}

				// Repaired, it goes on with the new pair.
				write(t, files.CA, caPEM)
				f := forge(t, ca, sourceURI, nil)
				write(t, files.Key, read(t, f.Key))
				write(t, files.Cert, read(t, f.Cert))
				poll()
				if leaf := connects(t, source.Credentials, mirror, server); !leaf.Equal(parse(t, f.Cert)) {
					t.Error("the repaired certificate is not served")
				}
			})
		})
	}
}

func TestMetrics(t *testing.T) {
	files := issue(t, newCA(t, ""), "prod-us", heliograph.RoleSource, "n1")
	r := run(t, files)
	if got, want := r.metric(t, "leaf"), parse(t, files.Cert).NotAfter; !got.Equal(want) {
		t.Errorf("leaf: got %s, want %s", got, want)
	}
	if got, want := r.metric(t, "ca"), parse(t, files.CA).NotAfter; !got.Equal(want) {
		t.Errorf("ca: got %s, want %s", got, want)
	}
	_, err := certs.Load(files, certs.Config{Metrics: r.regs})
	wantError(t, err, "register metrics")
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
