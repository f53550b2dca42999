package heliograph_test

import (
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
)

func TestAddress(t *testing.T) {
	for _, test := range []struct {
		in   string
		want heliograph.Address
		out  string // "" if String gives in back
	}{
		{"helio://10.0.0.5:7400/prod-us/default", heliograph.Address{Hosts: []string{"10.0.0.5:7400"}, Cluster: "prod-us", Database: "default"}, ""},
		{"helio://a:1,b.example.org:2/c/d", heliograph.Address{Hosts: []string{"a:1", "b.example.org:2"}, Cluster: "c", Database: "d"}, ""},
		{"helio://[::1]:9/c/d", heliograph.Address{Hosts: []string{"[::1]:9"}, Cluster: "c", Database: "d"}, ""},
		{"helio://a,b/c", heliograph.Address{Hosts: []string{"a:7400", "b:7400"}, Cluster: "c", Database: "default"}, "helio://a:7400,b:7400/c/default"},
		{"helio://[fd00::1]/c/", heliograph.Address{Hosts: []string{"[fd00::1]:7400"}, Cluster: "c", Database: "default"}, "helio://[fd00::1]:7400/c/default"},
		{"helio://a:/c", heliograph.Address{Hosts: []string{"a:7400"}, Cluster: "c", Database: "default"}, "helio://a:7400/c/default"},
	} {
		got, err := heliograph.ParseAddress(test.in)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, %v; want %+v", test.in, got, err, test.want)
		}
		if test.out == "" {
			test.out = test.in
		}
		if got.String() != test.out {
			t.Errorf("got %s, want %s", got, test.out)
		}
	}
}

func TestAddressRefuses(t *testing.T) {
	const form = "want helio://host:port[,host:port]/cluster[/database]"
	most := strings.TrimSuffix(strings.Repeat("a,", heliograph.MaxHosts), ",")
	if _, err := heliograph.ParseAddress("helio://" + most + "/c"); err != nil {
		t.Error(err)
	}
	for _, test := range []struct{ in, want string }{
		{"", form},
		{"a:7400/c", form},
		{"http://a:7400/c", form},
		{"helio://a:7400", form},
		{"helio://a:7400/", form},
		{"helio://a/c/d/e", form},
		{"helio:///c", "host"},
		{"helio://a,/c", "host"},
		{"helio://:7400/c", "host"},
		{"helio://a b/c", "host"},
		{"helio://u@a/c", "host"},
		{"helio://a?x/c", "host"},
		{"helio://a#x/c", "host"},
		{"helio://a:port/c", "host"},
		{"helio://[::1/c", "host"},
		{"helio://::1/c", "host"},
		{"helio://fd00::1:7400/c", "host"},
		{"helio://[fe80::1%25eth0]:7400/c", "without a zone"},
		{"helio://]/c", "host"},
		{"helio://%C3%A4/c", "DNS name"},
		{"helio://a:0/c", "port"},
		{"helio://a:65536/c", "port"},
		{"helio://a//d", "cluster id is empty"},
		{"helio://a/c!/d", "cluster id"},
		{"helio://a/c/d!", "database id"},
		{"helio://" + most + ",b/c", "more than 16 hosts"},
	} {
		got, err := heliograph.ParseAddress(test.in)
		if err == nil {
			t.Errorf("%q was read as %+v", test.in, got)
			continue
		}
		wantError(t, err, test.want)
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		"helio://10.0.0.5:7400,10.0.0.6/prod-us/default",
		"helio://[fe80::1%25eth0]:7400/c",
		"helio://a/c/",
		"helio://::1/c",
		"helio://%C3%A4/c",
		"helio://]/c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := heliograph.ParseAddress(s)
		if err != nil {
			return
		}
		if len(a.Hosts) == 0 || len(a.Hosts) > heliograph.MaxHosts {
			t.Errorf("%q has %d hosts", s, len(a.Hosts))
		}
		for _, host := range a.Hosts {
			if name, port, err := net.SplitHostPort(host); err != nil || name == "" || port == "" {
				t.Errorf("%q: host %q cannot be dialled", s, host)
			}
		}
		if again, err := heliograph.ParseAddress(a.String()); err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("%q was read as %s, and that as %+v, %v", s, a, again, err)
		}
	})
}
