package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
)

// runHelio runs one command line and returns its exit code and output.
func runHelio(t *testing.T, args ...string) (code int, out, talk string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, stdio{in: strings.NewReader(""), out: &o, err: &e})
	return code, o.String(), e.String()
}

func TestCertsCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "our certs")
	path := func(name string) string { return filepath.Join(dir, name) }

	code, out, talk := runHelio(t, "certs", "init", "--out", dir, "--domain", "example.org")
	if want := path("ca.crt") + "\n" + path("ca.key") + "\n"; code != exitDone || out != want {
		t.Fatalf("init: exit %d, stdout %q, want 0 and %q; %s", code, out, want, talk)
	}
	if !strings.Contains(talk, "\n  helio certs issue --out '"+dir+"' --cluster ") {
		t.Errorf("init does not say what is next: %q", talk)
	}

	for _, test := range []struct{ role, next string }{
		{"source", "helio source --cluster prod-us --etcd "},
		{"mirror", "helio mirror --cluster prod-us --from "},
		{"relay", "--listen 0.0.0.0:7400 --data-dir DIR --cert '" + path("relay1.crt") + "' --key '" + path("relay1.key") + "' --ca '" + path("ca.crt") + "'\n"},
		{"operator", "helio status --admin https://HOST:7481 --cert '"},
	} {
		name := test.role + "1"
		code, out, talk := runHelio(t, "certs", "issue", "--out", dir, "--cluster", "prod-us", "--role", test.role,
			"--name", name, "--hosts", "a.example.org,10.0.0.5", "--lifetime", "48h")
		if want := path(name+".crt") + "\n" + path(name+".key") + "\n" + path("ca.crt") + "\n"; code != exitDone || out != want {
			t.Fatalf("issue %s: exit %d, stdout %q, want 0 and %q; %s", test.role, code, out, want, talk)
		}
		if !strings.Contains(talk, test.next) {
			t.Errorf("issue %s does not say what is next, %q: %q", test.role, test.next, talk)
		}
		creds, err := certs.Load(certs.Files{Cert: path(name + ".crt"), Key: path(name + ".key"), CA: path("ca.crt")}, certs.Config{})
		if err != nil {
			t.Fatal(err)
		}
		want := heliograph.Identity{Domain: "example.org", Cluster: "prod-us", Role: heliograph.Role(test.role), Name: name}
		if creds.Identity() != want {
			t.Errorf("got %s, want %s", creds.Identity(), want)
		}
	}
}

func TestCertsCommandErrors(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca")
	if err := certs.Init(ca, ""); err != nil {
		t.Fatal(err)
	}
	issue := func(more ...string) []string {
		return append([]string{"certs", "issue", "--out", ca, "--cluster", "prod-us", "--role", "source", "--name", "us1"}, more...)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"certs", "isue"}, exitMisused, `unknown command "isue"`},
		{[]string{"certs", "init"}, exitMisused, "--out is required"},
		{[]string{"certs", "init", "more"}, exitMisused, "takes no arguments"},
		{[]string{"certs", "init", "--out", ca, "--domain", "A"}, exitMisused, "capital letters"},
		{[]string{"certs", "init", "--out", ca}, exitFailed, "exists already"},
		{[]string{"certs", "issue", "--out", ca}, exitMisused, "--cluster is required"},
		{[]string{"certs", "issue", "--out", ca, "--cluster", "a"}, exitMisused, "--role is required"},
		{[]string{"certs", "issue", "--out", ca, "--cluster", "a", "--role", "source"}, exitMisused, "--name is required"},
		{issue("--cluster", "a/b"), exitMisused, "Cluster"},
		{issue("--role", "voter"), exitMisused, "want source, mirror, relay or operator"},
		{issue("--name", "ca"), exitMisused, "files of the CA"},
		{issue("--hosts", "a:7400"), exitMisused, "without port"},
		{issue("--lifetime", "0s"), exitMisused, "--lifetime 0s"},
		{issue("--lifetime", "soon"), exitMisused, "lifetime"},
		{issue("--out", t.TempDir()), exitFailed, "helio certs init"},
	} {
		code, out, talk := runHelio(t, test.args...)
		if code != test.code || out != "" || !strings.Contains(talk, test.want) {
			t.Errorf("helio %s: exit %d, stdout %q, stderr %q; want %d and %q", strings.Join(test.args, " "), code, out, talk, test.code, test.want)
		}
	}
}
