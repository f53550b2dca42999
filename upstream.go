package heliograph

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Scheme is the scheme of an [Address].
const Scheme = "helio"

// Limits of an [Address].
const (
	MaxHosts        = 16
	DefaultDataPort = "7400"
)

// Address says where a node's upstream is and what it must be:
// helio://host:port,host:port/cluster/database.
type Address struct {
	Hosts    []string // host:port, in the order in which they are tried
	Cluster  ClusterID
	Database DatabaseID
}

// ParseAddress reads an address. A port left out is 7400, a database left out
// is [DefaultDatabase].
func ParseAddress(s string) (Address, error) {
	const want = "want helio://host:port[,host:port]/cluster[/database]"
	rest, ok := strings.CutPrefix(s, Scheme+"://")
	if !ok {
		return Address{}, fmt.Errorf("address %.200q: %s", s, want)
	}
	parts := strings.Split(strings.TrimSuffix(rest, "/"), "/")
	if len(parts) < 2 || len(parts) > 3 {
		return Address{}, fmt.Errorf("address %.200q: %s", s, want)
	}
	var a Address
	for host := range strings.SplitSeq(parts[0], ",") {
		if len(a.Hosts) == MaxHosts {
			return Address{}, fmt.Errorf("address %.200q names more than %d hosts", s, MaxHosts)
		}
		hp, err := hostPort(host)
		if err != nil {
			return Address{}, fmt.Errorf("address %.200q: host %q: %w", s, host, err)
		}
		a.Hosts = append(a.Hosts, hp)
	}
	var err error
	if a.Cluster, err = ParseClusterID(parts[1]); err != nil {
		return Address{}, fmt.Errorf("address %.200q: %w", s, err)
	}
	a.Database = DefaultDatabase
	if len(parts) == 3 {
		if a.Database, err = ParseDatabaseID(parts[2]); err != nil {
			return Address{}, fmt.Errorf("address %.200q: %w", s, err)
		}
	}
	return a, nil
}

func hostPort(s string) (string, error) {
	u, err := url.Parse("//" + s)
	if err != nil {
		return "", err
	}
	if u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("want host:port")
	}
	host, port := u.Hostname(), u.Port()
	other := func(r rune) bool { return r > 127 || !alphanumeric(byte(r)) && r != '-' && r != '_' && r != '.' }
	if strings.ContainsFunc(host, other) {
		if addr, err := netip.ParseAddr(host); err != nil || addr.Zone() != "" || s[0] != '[' {
			return "", fmt.Errorf("want a DNS name, an IPv4 address, or an IPv6 address in brackets and without a zone")
		}
	}
	if port == "" {
		port = DefaultDataPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("port %.20q: want 1 to 65535", port)
	}
	return net.JoinHostPort(host, port), nil
}

// String returns the address in the form that [ParseAddress] reads.
func (a Address) String() string {
	return fmt.Sprintf("%s://%s/%s/%s", Scheme, strings.Join(a.Hosts, ","), a.Cluster, a.Database)
}
