package heliograph_test

import (
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
)

func TestIdentity(t *testing.T) {
	for uri, want := range map[string]heliograph.Identity{
		"spiffe://heliograph.local/heliograph/prod-us/source/n1":     {Domain: "heliograph.local", Cluster: "prod-us", Role: heliograph.RoleSource, Name: "n1"},
		"spiffe://example.org/heliograph/eu.west/mirror/m_1":         {Domain: "example.org", Cluster: "eu.west", Role: heliograph.RoleMirror, Name: "m_1"},
		"spiffe://d/heliograph/c/relay/r":                            {Domain: "d", Cluster: "c", Role: heliograph.RoleRelay, Name: "r"},
		"spiffe://d/heliograph/heliograph/operator/heliograph":       {Domain: "d", Cluster: "heliograph", Role: heliograph.RoleOperator, Name: "heliograph"},
		"spiffe://d/heliograph/" + longestName + "/operator/o.o-o_o": {Domain: "d", Cluster: heliograph.ClusterID(longestName), Role: heliograph.RoleOperator, Name: "o.o-o_o"},
	} {
		got, err := heliograph.ParseIdentity(uri)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", uri, got, err, want)
		}
		if got.String() != uri {
			t.Errorf("got %s, want %s", got, uri)
		}
	}
}

func TestIdentityRefuses(t *testing.T) {
	const form = "want spiffe://<domain>/heliograph/<cluster>/<role>/<name>"
	for _, test := range []struct{ uri, want string }{
		{"", form},
		{"spiffe://", form},
		{"spiffe://d/heliograph/c/source", form},
		{"spiffe://d/heliograph/c/source/n/", form},
		{"spiffe://d/heliograph/c/source/n/more", form},
		{"spiffe://d/Heliograph/c/source/n", form},
		{"spiffe://d/ns/c/source/n", form},
		{"SPIFFE://d/heliograph/c/source/n", form},
		{"https://d/heliograph/c/source/n", form},
		{" spiffe://d/heliograph/c/source/n", form},
		{"spiffe:///heliograph/c/source/n", "domain is empty"},
		{"spiffe://d:1/heliograph/c/source/n", `':'`},
		{"spiffe://u@d/heliograph/c/source/n", `'@'`},
		{"spiffe://d/heliograph//source/n", "cluster id is empty"},
		{"spiffe://d/heliograph/c%2e/source/n", "cluster id"},
		{"spiffe://d/heliograph/c/Source/n", "want source, mirror, relay or operator"},
		{"spiffe://d/heliograph/c//n", "want source, mirror, relay or operator"},
		{"spiffe://d/heliograph/c/source/", "name is empty"},
		{"spiffe://d/heliograph/c/source/n?q", `'?'`},
		{"spiffe://d/heliograph/c/source/n#f", `'#'`},
		{"spiffe://d/heliograph/c/source/n ", `' '`},
		{"spiffe://d/heliograph/c/source/..", "name"},
		{"spiffe://d/heliograph/c/source/n\x00", "name"},
		{"spiffe://" + longestName + "d/heliograph/c/source/n", "domain"},
	} {
		got, err := heliograph.ParseIdentity(test.uri)
		wantError(t, err, test.want)
		if got != (heliograph.Identity{}) {
			t.Errorf("%q: got %+v beside the error", test.uri, got)
		}
	}
}

func TestRoles(t *testing.T) {
	for _, test := range []struct {
		role             heliograph.Role
		observes, serves bool
	}{
		{heliograph.RoleSource, false, true},
		{heliograph.RoleMirror, true, false},
		{heliograph.RoleRelay, true, true},
		{heliograph.RoleOperator, false, false},
		{"voter", false, false},
	} {
		if test.role.Observes() != test.observes || test.role.Serves() != test.serves {
			t.Errorf("%s: observes %v, serves %v", test.role, test.role.Observes(), test.role.Serves())
		}
	}
	_, err := heliograph.ParseRole(strings.Repeat("x", 1<<20))
	wantError(t, err, "want source, mirror, relay or operator")
	if len(err.Error()) > 200 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func FuzzParseIdentity(f *testing.F) {
	for _, s := range []string{
		"spiffe://heliograph.local/heliograph/prod-us/source/n1",
		"spiffe://d/heliograph/c/operator/n/",
		"spiffe://d/heliograph/c%2f/relay/n",
		"spiffe://",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := heliograph.ParseIdentity(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Errorf("%q was read as %q", s, id)
		}
	})
}
