package heliograph

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Limits of the forks that a database remembers.
const (
	MaxForks      = 64
	MaxTokenBytes = 64
	maxForksBytes = 256 << 10 // of [EncodeForks]; several times what they can be
)

// EtcdID is etcd's cluster id, written as etcdctl prints it.
type EtcdID uint64

// String returns the id in hexadecimal; empty if it is zero.
func (id EtcdID) String() string {
	if id == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(id), 16)
}

// MarshalText implements [encoding.TextMarshaler].
func (id EtcdID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *EtcdID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = 0
		return nil
	}
	n, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("etcd cluster id %.40q: %w", b, err)
	}
	*id = EtcdID(n)
	return nil
}

// Fork says where a database left the history that it was mirrored from. The
// database carries it, so that whoever copies the one has the other.
type Fork struct {
	Origin   string     `json:"origin"`          // Origin.String of the history that was left
	Revision int64      `json:"revision"`        // the last revision of that history
	Bump     int64      `json:"bump"`            // revisions left out after it
	Cluster  ClusterID  `json:"cluster"`         // of the node that left it
	Database DatabaseID `json:"database"`        // within Cluster
	EtcdID   EtcdID     `json:"etcd_cluster_id"` // of the new etcd; zero in an exported snapshot, whose restore decides
	Token    string     `json:"token"`           // unique to this fork, at most MaxTokenBytes
	At       time.Time  `json:"at"`              // when it began
}

// First returns the first revision that belongs to the new history alone.
func (f Fork) First() int64 { return f.Revision + f.Bump + 1 }

// Heir returns the origin that the new history has. Its names may not be those under
// which a source node serves it later.
func (f Fork) Heir() Origin {
	return Origin{Cluster: f.Cluster, Database: f.Database, EtcdID: uint64(f.EtcdID)}
}

// Check returns what is wrong with a fork that came from elsewhere.
func (f Fork) Check() error {
	o, err := ParseOrigin(f.Origin)
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	if o.String() != f.Origin {
		return fmt.Errorf("fork: origin %.200q is not written as %q", f.Origin, o)
	}
	if _, err := ParseOrigin(f.Heir().String()); err != nil {
		return fmt.Errorf("fork: heir: %w", err)
	}
	switch {
	case f.Revision < 1 || f.Revision > math.MaxInt64/2 || f.Bump < 0 || f.Bump > math.MaxInt64/2:
		return fmt.Errorf("fork at revision %d, bumped by %d", f.Revision, f.Bump)
	case len(f.Token) > MaxTokenBytes:
		return fmt.Errorf("fork: token of %d bytes, at most %d", len(f.Token), MaxTokenBytes)
	}
	return nil
}

// EncodeForks returns forks, oldest first, as a database keeps them: a JSON list of
// the last MaxForks.
func EncodeForks(forks []Fork) ([]byte, error) {
	return json.Marshal(forks[max(0, len(forks)-MaxForks):])
}

// ParseForks reads what [EncodeForks] wrote. Nil is a database that was never
// promoted.
func ParseForks(b []byte) ([]Fork, error) {
	if b == nil {
		return nil, nil
	}
	if len(b) > maxForksBytes {
		return nil, fmt.Errorf("list of forks has %d bytes, at most %d can be", len(b), maxForksBytes)
	}
	var forks []Fork
	if err := json.Unmarshal(b, &forks); err != nil {
		return nil, fmt.Errorf("list of forks cannot be read: %w", err)
	}
	if len(forks) > MaxForks {
		return nil, fmt.Errorf("list of forks has %d, at most %d can be", len(forks), MaxForks)
	}
	for i, f := range forks {
		if err := f.Check(); err != nil {
			return nil, fmt.Errorf("list of forks: %d: %w", i, err)
		}
	}
	return forks, nil
}
