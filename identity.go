package heliograph

import (
	"fmt"
	"strings"
)

// Role says what a certificate's holder may be.
type Role string

// The roles. A relay is a mirror that serves further mirrors; an operator may
// change a node through its admin API.
const (
	RoleSource   Role = "source"
	RoleMirror   Role = "mirror"
	RoleRelay    Role = "relay"
	RoleOperator Role = "operator"
)

// ParseRole reads a role.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleSource, RoleMirror, RoleRelay, RoleOperator:
		return r, nil
	}
	return "", fmt.Errorf("role %.40q: want source, mirror, relay or operator", s)
}

// Observes reports whether the role may follow a source.
func (r Role) Observes() bool { return r == RoleMirror || r == RoleRelay }

// Serves reports whether the role may be followed.
func (r Role) Serves() bool { return r == RoleSource || r == RoleRelay }

// Identity is who a certificate says its holder is. It is written as the
// certificate's only URI SAN, in the form of a SPIFFE id:
//
//	spiffe://<domain>/heliograph/<cluster>/<role>/<name>
type Identity struct {
	Domain  string
	Cluster ClusterID
	Role    Role
	Name    string
}

// String returns the URI that [ParseIdentity] reads.
func (i Identity) String() string {
	return fmt.Sprintf("spiffe://%s/heliograph/%s/%s/%s", i.Domain, i.Cluster, i.Role, i.Name)
}

// ParseIdentity reads an identity's URI, whole: nothing may precede, follow or
// be escaped in it.
func ParseIdentity(uri string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "heliograph" {
		return Identity{}, fmt.Errorf("identity %.200q: want spiffe://<domain>/heliograph/<cluster>/<role>/<name>", uri)
	}
	if err := checkName(parts[0]); err != nil {
		return Identity{}, fmt.Errorf("identity %.200q: domain %w", uri, err)
	}
	cluster, err := ParseClusterID(parts[2])
	if err != nil {
		return Identity{}, fmt.Errorf("identity %.200q: %w", uri, err)
	}
	role, err := ParseRole(parts[3])
	if err != nil {
		return Identity{}, fmt.Errorf("identity %.200q: %w", uri, err)
	}
	name, err := ParseName(parts[4])
	if err != nil {
		return Identity{}, fmt.Errorf("identity %.200q: %w", uri, err)
	}
	return Identity{Domain: parts[0], Cluster: cluster, Role: role, Name: name}, nil
}
