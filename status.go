package heliograph

import (
	"encoding/json"
	"fmt"
	"time"
)

// State is where a node stands with its upstream:
//
//	Bootstrapping ─► CatchingUp ─► Following ◄──► Degraded
//	      ▲                           │  ▲            │
//	      └─ history gone ─ Disconnected ◄┴───────────┘
//	any ─► Diverged      any ─► Promoting ─► Promoted
type State uint8

// The states.
const (
	Disconnected  State = iota // nothing heard from the upstream
	Bootstrapping              // receiving a snapshot
	CatchingUp                 // applying history, not yet at the head
	Following                  // at the head, within the lag that is normal
	Degraded                   // connected, but too far behind or not moving
	Diverged                   // another history: stopped
	Promoting                  // becoming a cluster of its own
	Promoted                   // a cluster of its own, for good
)

var stateNames = [...]string{
	"disconnected", "bootstrapping", "catching-up", "following", "degraded", "diverged", "promoting", "promoted",
}

// String returns the state's name, as status and metrics show it.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// ParseState reads what [State.String] wrote.
func ParseState(s string) (State, error) {
	for i, name := range stateNames {
		if s == name {
			return State(i), nil
		}
	}
	return 0, fmt.Errorf("state %.40q is not known", s)
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *State) UnmarshalText(b []byte) (err error) {
	*s, err = ParseState(string(b))
	return err
}

// Mode says when a replica acknowledges.
type Mode string

// The modes.
const (
	Async Mode = "async" // durable within 100 ms of being applied
	Sync  Mode = "sync"  // an fsync after every group of revisions, before it is acknowledged
)

// ParseMode reads a mode.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Async, Sync:
		return m, nil
	}
	return "", fmt.Errorf("mode %.40q: want async or sync", s)
}

// Status is what a node says of one database, in the form in which
// `helio status -o json` prints it. Durations are milliseconds of the node's own
// monotonic clock.
type Status struct {
	Name     DatabaseID `json:"name"`
	Cluster  ClusterID  `json:"cluster"`
	Role     Role       `json:"role"`
	Node     string     `json:"node"`   // the id of the node's data directory
	Origin   string     `json:"origin"` // Origin.String; "" before the first snapshot
	Upstream string     `json:"upstream"`
	Mode     Mode       `json:"mode"`
	// Reads says whom the node lets read: "anyone", "client-certificate", or
	// "refused: " and why; "" if it serves no etcd clients.
	Reads string `json:"reads"`

	Status State  `json:"status"`
	Why    string `json:"why"` // empty only when following

	BytesDone  int64 `json:"bytes_done"`  // of the snapshot being received
	BytesTotal int64 `json:"bytes_total"` // 0 if not known

	AppliedRevision int64 `json:"applied_revision"`
	DurableRevision int64 `json:"durable_revision"`
	HeadRevision    int64 `json:"head_revision"`
	CompactRevision int64 `json:"compact_revision"`
	BehindRevisions int64 `json:"behind_revisions"`

	LagMS       int64 `json:"lag_ms"`
	StalenessMS int64 `json:"staleness_ms"` // -1 if it was never up to date
	ETAMS       int64 `json:"eta_ms"`       // until caught up or bootstrapped; -1 if not known

	// The last verification that proved equality. Both are zero if there was
	// none; what could not be checked does not count.
	LastVerifiedRevision int64     `json:"last_verified_revision"`
	LastVerifiedAt       time.Time `json:"last_verified_at,omitzero"`
	// The last verification, however it ended; empty if there was none.
	LastVerifyResult VerifyResult `json:"last_verify_result"`
	LastVerifyWhy    string       `json:"last_verify_why"` // empty if it proved equality
	LastVerifyAt     time.Time    `json:"last_verify_at,omitzero"`

	Downstreams []Downstream `json:"downstreams"`
}

// Downstream is what a source knows of one mirror.
type Downstream struct {
	Name            string    `json:"name"`
	Cluster         ClusterID `json:"cluster"`
	Address         string    `json:"address"`
	State           string    `json:"state"` // snapshot, catching-up or live
	SentRevision    int64     `json:"sent_revision"`
	AppliedRevision int64     `json:"applied_revision"`
	DurableRevision int64     `json:"durable_revision"`
	InFlightBytes   int64     `json:"in_flight_bytes"`
	LagMS           int64     `json:"lag_ms"` // how long the oldest revision not applied has been on its way
	ConnectedMS     int64     `json:"connected_ms"`
}

// ParseStatuses reads the list that a node's /v1/status answers with.
func ParseStatuses(b []byte) ([]Status, error) {
	var list []Status
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return list, nil
}
