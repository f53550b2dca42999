package certs_test

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
)

func TestInit(t *testing.T) {
	dir := newCA(t, "")
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("folder has mode %04o, want 0700", got)
	}
	wantModes(t, dir, "ca.crt", "ca.key")

	ca := parse(t, filepath.Join(dir, "ca.crt"))
	if !ca.IsCA || !ca.MaxPathLenZero {
		t.Error("the certificate is not that of a CA that signs leaves only")
	}
	if got, want := ca.PermittedURIDomains, []string{"heliograph.local"}; !slices.Equal(got, want) {
		t.Errorf("permitted domains: got %q, want %q", got, want)
	}
	if got, want := ca.NotAfter.Year()-time.Now().UTC().Year(), 10; got != want {
		t.Errorf("valid for %d years, want %d", got, want)
	}
}

func TestInitRefuses(t *testing.T) {
	t.Run("existing CA", func(t *testing.T) {
		dir := newCA(t, "")
		before := read(t, filepath.Join(dir, "ca.key"))
		wantError(t, certs.Init(dir, ""), "ca.key", "exists already")
		if string(read(t, filepath.Join(dir, "ca.key"))) != string(before) {
			t.Error("the key was overwritten")
		}
	})
	t.Run("certificate without key", func(t *testing.T) {
		dir := newCA(t, "")
		if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
			t.Fatal(err)
		}
		wantError(t, certs.Init(dir, ""), "ca.crt", "exists already")
		if _, err := os.Stat(filepath.Join(dir, "ca.key")); err == nil {
			t.Error("a key was left behind")
		}
	})
	t.Run("folder others can write", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		wantError(t, certs.Init(dir, ""), "can be written by others", "chmod 0700")
	})
	for _, domain := range []string{"a b", "Example.com", "10.0.0.1", "a..b", "a.-b", strings.Repeat("a", 64)} {
		t.Run("domain "+domain, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			wantError(t, certs.Init(dir, domain), "domain")
			if _, err := os.Stat(dir); err == nil {
				t.Error("a folder was made")
			}
		})
	}
	wantError(t, certs.Init("", ""), "no folder")
}

func TestIssue(t *testing.T) {
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, test := range []struct {
		role  heliograph.Role
		dns   []string
		usage []x509.ExtKeyUsage
	}{
		{heliograph.RoleSource, []string{"prod-us", "node.example.com"}, both},
		{heliograph.RoleRelay, []string{"prod-us", "node.example.com"}, both},
		{heliograph.RoleMirror, []string{"prod-us", "node.example.com"}, both},
		{heliograph.RoleOperator, []string{"node.example.com"}, both[:1]},
	} {
		t.Run(string(test.role), func(t *testing.T) {
			dir := newCA(t, "example.org")
			files, err := certs.Issue(certs.IssueConfig{
				Dir: dir, Cluster: "prod-us", Role: test.role, Name: "n1",
				Hosts: []string{"node.example.com", "10.1.2.3", "fd00::1"},
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := (certs.Files{Cert: filepath.Join(dir, "n1.crt"), Key: filepath.Join(dir, "n1.key"), CA: filepath.Join(dir, "ca.crt")}); files != want {
				t.Errorf("got %+v, want %+v", files, want)
			}
			wantModes(t, dir, "n1.crt", "n1.key")
			wantNothingElse(t, dir, "ca.crt", "ca.key", "n1.crt", "n1.key")

			leaf := parse(t, files.Cert)
			uri := "spiffe://example.org/heliograph/prod-us/" + string(test.role) + "/n1"
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != uri {
				t.Errorf("URI SANs: got %v, want only %s", leaf.URIs, uri)
			}
			if got := leaf.Subject.String(); got != "" {
				t.Errorf("subject: got %q, want none", got)
			}
			if !slices.Equal(leaf.DNSNames, test.dns) {
				t.Errorf("DNS SANs: got %q, want %q", leaf.DNSNames, test.dns)
			}
			if !slices.EqualFunc(leaf.IPAddresses, []string{"10.1.2.3", "fd00::1"}, func(a net.IP, b string) bool { return a.String() == b }) {
				t.Errorf("IP SANs: got %v", leaf.IPAddresses)
			}
			if !slices.Equal(leaf.ExtKeyUsage, test.usage) {
				t.Errorf("usages: got %v, want %v", leaf.ExtKeyUsage, test.usage)
			}
			wantNear(t, leaf.NotAfter, time.Now().Add(certs.DefaultLifetime))

			c := load(t, files)
			if got := c.Identity().String(); got != uri {
				t.Errorf("identity: got %s, want %s", got, uri)
			}
			if !c.NotAfter().Equal(leaf.NotAfter) {
				t.Errorf("NotAfter: got %s, want %s", c.NotAfter(), leaf.NotAfter)
			}
		})
	}
}

func TestIssueLifetime(t *testing.T) {
	dir := newCA(t, "")
	for _, test := range []struct{ lifetime, want time.Duration }{
		{time.Minute, time.Minute},
		{200 * 365 * 24 * time.Hour, time.Until(parse(t, filepath.Join(dir, "ca.crt")).NotAfter)},
	} {
		files, err := certs.Issue(certs.IssueConfig{Dir: dir, Cluster: "prod-us", Role: heliograph.RoleSource, Name: "n1", Lifetime: test.lifetime})
		if err != nil {
			t.Fatal(err)
		}
		wantNear(t, parse(t, files.Cert).NotAfter, time.Now().Add(test.want))
	}
}

func TestIssueRenews(t *testing.T) {
	dir := newCA(t, "")
	files := issue(t, dir, "prod-us", heliograph.RoleSource, "n1")
	cert, key := read(t, files.Cert), read(t, files.Key)
	issue(t, dir, "prod-us", heliograph.RoleSource, "n1")
	if string(read(t, files.Cert)) == string(cert) || string(read(t, files.Key)) == string(key) {
		t.Error("certificate and key are not both new")
	}
	load(t, files)

	// A crash after the certificate was replaced: the old key stands beside it.
	write(t, files.Key, key)
	_, err := certs.Load(files, certs.Config{})
	wantError(t, err, "are no pair", "issue them again")
	issue(t, dir, "prod-us", heliograph.RoleSource, "n1")
	load(t, files)

	// A crash before the first key was written.
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	issue(t, dir, "prod-us", heliograph.RoleSource, "n1")
	load(t, files)
}

func TestIssueRefusesToOverwrite(t *testing.T) {
	for _, test := range []struct {
		name  string
		files func(t *testing.T, dir string)
		want  string
	}{
		{"another cluster", func(t *testing.T, dir string) { issue(t, dir, "prod-eu", heliograph.RoleSource, "n1") }, "belongs to spiffe://"},
		{"another role", func(t *testing.T, dir string) { issue(t, dir, "prod-us", heliograph.RoleMirror, "n1") }, "belongs to spiffe://"},
		{"no certificate", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "n1.crt"), []byte("notes")) }, "no PEM certificate"},
		{"no identity", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "n1.crt"), read(t, filepath.Join(dir, "ca.crt")))
		}, "0 URI SANs"},
		{"a key alone", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "n1.key"), []byte("somebody's")) }, "without a certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newCA(t, "")
			test.files(t, dir)
			before := snapshot(t, dir)
			_, err := certs.Issue(certs.IssueConfig{Dir: dir, Cluster: "prod-us", Role: heliograph.RoleSource, Name: "n1"})
			wantError(t, err, test.want, "n1")
			if got := snapshot(t, dir); got != before {
				t.Error("files were changed")
			}
		})
	}
}

func TestIssueRefusesConfig(t *testing.T) {
	good := certs.IssueConfig{Dir: newCA(t, ""), Cluster: "prod-us", Role: heliograph.RoleSource, Name: "n1"}
	before := snapshot(t, good.Dir)
	for _, test := range []struct {
		want string
		edit func(*certs.IssueConfig)
	}{
		{"Dir:", func(c *certs.IssueConfig) { c.Dir = "" }},
		{"Cluster:", func(c *certs.IssueConfig) { c.Cluster = "" }},
		{"Cluster:", func(c *certs.IssueConfig) { c.Cluster = "a/b" }},
		{"cannot be a server name", func(c *certs.IssueConfig) { c.Cluster = "10.0.0.1" }},
		{"cannot be a server name", func(c *certs.IssueConfig) { c.Cluster = "a.-b" }},
		{"cannot be a server name", func(c *certs.IssueConfig) { c.Cluster, c.Role = "10.0.0.1", heliograph.RoleMirror }},
		{"Role:", func(c *certs.IssueConfig) { c.Role = "voter" }},
		{"Name:", func(c *certs.IssueConfig) { c.Name = "../n1" }},
		{"taken by the files of the CA", func(c *certs.IssueConfig) { c.Name = "ca" }},
		{"taken by the files of the CA", func(c *certs.IssueConfig) { c.Name = "CA" }},
		{"Hosts:", func(c *certs.IssueConfig) { c.Hosts = []string{"host:7400"} }},
		{"Hosts:", func(c *certs.IssueConfig) { c.Hosts = []string{"*.example.com"} }},
		{"Hosts:", func(c *certs.IssueConfig) { c.Hosts = []string{"[::1]"} }},
		{"Hosts:", func(c *certs.IssueConfig) { c.Hosts = []string{"fe80::1%eth0"} }},
		{"Hosts:", func(c *certs.IssueConfig) { c.Hosts = []string{""} }},
		{"Hosts:", func(c *certs.IssueConfig) { c.Hosts = slices.Repeat([]string{"a"}, certs.MaxHosts+1) }},
		{"Lifetime:", func(c *certs.IssueConfig) { c.Lifetime = -time.Second }},
	} {
		c := good
		test.edit(&c)
		_, err := certs.Issue(c)
		wantError(t, err, test.want)
	}
	if snapshot(t, good.Dir) != before {
		t.Error("files were changed")
	}
}

func TestIssueRefusesCA(t *testing.T) {
	one, other := newCA(t, ""), newCA(t, "")
	config := func(dir string) certs.IssueConfig {
		return certs.IssueConfig{Dir: dir, Cluster: "prod-us", Role: heliograph.RoleSource, Name: "n1"}
	}
	_, err := certs.Issue(config(t.TempDir()))
	wantError(t, err, "no CA in", "helio certs init")

	certPath := filepath.Join(one, "ca.crt")
	own, foreign := read(t, certPath), read(t, filepath.Join(other, "ca.crt"))
	write(t, certPath, foreign)
	_, err = certs.Issue(config(one))
	wantError(t, err, "does not belong to")

	// While a CA is being replaced, its file holds two; the key decides.
	write(t, certPath, slices.Concat(foreign, own))
	files, err := certs.Issue(config(one))
	if err != nil {
		t.Fatal(err)
	}
	load(t, files)

	write(t, filepath.Join(one, "ca.key"), []byte("x"))
	_, err = certs.Issue(config(one))
	wantError(t, err, "holds no PEM key")
}

func wantModes(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if got := info.Mode(); got != 0o600 {
			t.Errorf("%s has mode %s, want a file of 0600", name, got)
		}
	}
}

func wantNothingElse(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			t.Errorf("%s was left in the folder", e.Name())
		}
	}
}

func wantNear(t *testing.T, got, want time.Time) {
	t.Helper()
	if d := got.Sub(want).Abs(); d > time.Minute {
		t.Errorf("got %s, want %s", got, want)
	}
}

// snapshot returns all names and contents of a folder.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.Name() + "\n")
		b.Write(read(t, filepath.Join(dir, e.Name())))
	}
	return b.String()
}
