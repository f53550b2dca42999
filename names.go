package heliograph

import (
	"fmt"
	"strings"
)

// MaxNameBytes is the longest a [ClusterID], [DatabaseID] or node name can be:
// it must fit into a DNS label, because a cluster id is also the server name
// that its certificates carry.
const MaxNameBytes = 63

// ClusterID names a cluster: what --cluster says and what certificates carry.
type ClusterID string

// DatabaseID names one replicated database within a cluster.
type DatabaseID string

// DefaultDatabase is the database of a cluster that names no other.
const DefaultDatabase DatabaseID = "default"

// ParseClusterID checks s and returns it as a ClusterID: 1 to 63 bytes of
// a-z, A-Z, 0-9, '-', '_' and '.', the first and the last a letter or a digit.
func ParseClusterID(s string) (ClusterID, error) {
	if err := checkName(s); err != nil {
		return "", fmt.Errorf("cluster id %w", err)
	}
	return ClusterID(s), nil
}

// ParseDatabaseID checks s by the rules of [ParseClusterID]. The name is also
// a file name in the data directory.
func ParseDatabaseID(s string) (DatabaseID, error) {
	if err := checkName(s); err != nil {
		return "", fmt.Errorf("database id %w", err)
	}
	return DatabaseID(s), nil
}

// ParseName checks the name of a node by the rules of [ParseClusterID].
func ParseName(s string) (string, error) {
	if err := checkName(s); err != nil {
		return "", fmt.Errorf("name %w", err)
	}
	return s, nil
}

func checkName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("is empty: use 1 to %d letters, digits, '-', '_' or '.'", MaxNameBytes)
	case len(s) > MaxNameBytes:
		return fmt.Errorf("%.80q has %d bytes: at most %d are allowed", s, len(s), MaxNameBytes)
	}
	for i := range len(s) {
		c := s[i]
		inner := c == '-' || c == '_' || c == '.'
		if !alphanumeric(c) && (!inner || i == 0 || i == len(s)-1) {
			return fmt.Errorf("%q has %q at byte %d: use letters and digits, and '-', '_' or '.' between them", s, c, i)
		}
	}
	if strings.Contains(s, "..") {
		return fmt.Errorf("%q has two dots in a row", s)
	}
	return nil
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
