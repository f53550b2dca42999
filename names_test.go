package heliograph_test

import (
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
)

var longestName = strings.Repeat("n", heliograph.MaxNameBytes)

func TestNames(t *testing.T) {
	for _, test := range []struct {
		in   string
		want string // what the error says; "" if the name is good
	}{
		{"a", ""},
		{"prod-us", ""},
		{"db_01JTEST", ""},
		{"eu.west.1", ""},
		{"0-_.9", ""},
		{longestName, ""},

		{"", "is empty"},
		{longestName + "n", "64 bytes"},
		{"-a", "byte 0"},
		{"a-", "byte 1"},
		{".", "byte 0"},
		{"a.", "byte 1"},
		{"_a", "byte 0"},
		{"a..b", "two dots"},
		{"a/b", "byte 1"},
		{"../a", "byte 0"},
		{"a b", "byte 1"},
		{"a\x00", "byte 1"},
		{"a\n", "byte 1"},
		{"ä", "byte 0"},
		{"a%2f", "byte 1"},
		{"a:1", "byte 1"},
	} {
		cluster, clusterErr := heliograph.ParseClusterID(test.in)
		database, databaseErr := heliograph.ParseDatabaseID(test.in)
		name, nameErr := heliograph.ParseName(test.in)
		for what, got := range map[string]struct {
			out string
			err error
		}{
			"cluster id":  {string(cluster), clusterErr},
			"database id": {string(database), databaseErr},
			"name":        {name, nameErr},
		} {
			switch {
			case test.want == "" && (got.err != nil || got.out != test.in):
				t.Errorf("%s %q: got %q, %v", what, test.in, got.out, got.err)
			case test.want != "" && got.out != "":
				t.Errorf("%s %q: got %q beside the error", what, test.in, got.out)
			case test.want != "":
				wantError(t, got.err, what+" ", test.want)
			}
		}
	}
}

// wantError fails unless err says all of the parts.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("got no error, want one that says %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %q, want it to say %q", err, part)
		}
	}
}

// A name becomes a file name, a DNS label or labels, and a part of URIs.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"a", "prod-us", "a..b", "a/b", longestName} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := heliograph.ParseName(s)
		if err != nil {
			if len(err.Error()) > 600 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		if name != s || len(s) > heliograph.MaxNameBytes || strings.ContainsAny(s, "/\\:%@?#, \x00") || strings.Contains(s, "..") || s[0] == '.' {
			t.Errorf("%q was let through as %q", s, name)
		}
	})
}
