package heliograph_test

import (
	"math"
	"testing"

	"github.com/heliograph/heliograph"
)

func TestOrigin(t *testing.T) {
	for s, want := range map[string]heliograph.Origin{
		"prod-us/default@cdf818194e3a8c32":       {Cluster: "prod-us", Database: "default", EtcdID: 0xcdf818194e3a8c32},
		"prod-us/db_01JTEST@1":                   {Cluster: "prod-us", Database: "db_01JTEST", EtcdID: 1},
		"a/b@0":                                  {Cluster: "a", Database: "b"},
		"a/" + longestName + "@ffffffffffffffff": {Cluster: "a", Database: heliograph.DatabaseID(longestName), EtcdID: math.MaxUint64},
	} {
		got, err := heliograph.ParseOrigin(s)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", s, got, err, want)
		}
		if got.String() != s {
			t.Errorf("got %s, want %s", got, s)
		}
		if got.IsZero() {
			t.Errorf("%s is not the zero origin", s)
		}
	}
	if !(heliograph.Origin{}).IsZero() {
		t.Error("the zero origin is zero")
	}
}

func TestOriginRefuses(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", "want cluster/database@id"},
		{"a/b", "want cluster/database@id"},
		{"a@1", "want cluster/database@id"},
		{"/b@1", "cluster id is empty"},
		{"a/@1", "database id is empty"},
		{"a/b/c@1", "database id"},
		{"a b/c@1", "cluster id"},
		{"a/b@", "etcd cluster id"},
		{"a/b@0x1", "etcd cluster id"},
		{"a/b@-1", "etcd cluster id"},
		{"a/b@10000000000000000", "etcd cluster id"},
		{"a/b@1@2", "etcd cluster id"},
	} {
		got, err := heliograph.ParseOrigin(test.in)
		wantError(t, err, test.want)
		if !got.IsZero() {
			t.Errorf("%q: got %+v beside the error", test.in, got)
		}
	}
}

func TestPositionString(t *testing.T) {
	p := heliograph.Position{Origin: heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 0xab}, Rev: 12345}
	if got, want := p.String(), "prod-us/default@ab:12345"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParseOrigin(f *testing.F) {
	for _, s := range []string{"prod-us/default@cdf818194e3a8c32", "a/b@00F", "a/b", "@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := heliograph.ParseOrigin(s)
		if err != nil {
			return
		}
		if again, err := heliograph.ParseOrigin(o.String()); err != nil || again != o {
			t.Errorf("%q was read as %s, and that as %s, %v", s, o, again, err)
		}
	})
}
