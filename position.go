package heliograph

import (
	"fmt"
	"strconv"
	"strings"
)

// Origin says which etcd a replica's bytes come from. Every node of a chain of
// mirrors has the origin of the source node at its head. The zero Origin means
// not known yet.
type Origin struct {
	Cluster  ClusterID  // the --cluster of the source node beside that etcd
	Database DatabaseID // the database within it
	EtcdID   uint64     // etcd's own cluster id, as in its response headers
}

// IsZero reports whether nothing is known of the origin.
func (o Origin) IsZero() bool { return o == Origin{} }

// String returns cluster/database@id with the id in hexadecimal, as etcdctl
// prints it; [ParseOrigin] reads it back.
func (o Origin) String() string {
	return fmt.Sprintf("%s/%s@%x", o.Cluster, o.Database, o.EtcdID)
}

// ParseOrigin reads what [Origin.String] wrote.
func ParseOrigin(s string) (Origin, error) {
	names, id, ok := strings.Cut(s, "@")
	cluster, database, ok2 := strings.Cut(names, "/")
	if !ok || !ok2 {
		return Origin{}, fmt.Errorf("origin %q: want cluster/database@id", s)
	}
	c, err := ParseClusterID(cluster)
	if err != nil {
		return Origin{}, fmt.Errorf("origin %q: %w", s, err)
	}
	d, err := ParseDatabaseID(database)
	if err != nil {
		return Origin{}, fmt.Errorf("origin %q: %w", s, err)
	}
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return Origin{}, fmt.Errorf("origin %q: etcd cluster id: %w", s, err)
	}
	return Origin{Cluster: c, Database: d, EtcdID: n}, nil
}

// Position is a place in one history: every revision of the origin up to and
// including Rev has been applied. The zero Position means nothing yet.
type Position struct {
	Origin Origin
	Rev    int64
}

// String returns origin:revision, for logs and bug reports.
func (p Position) String() string { return fmt.Sprintf("%s:%d", p.Origin, p.Rev) }
