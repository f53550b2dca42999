package heliograph

import (
	"errors"
	"fmt"
)

// Conditions that cross packages. They are recognised with [errors.Is], through
// any wrapping.
var (
	// ErrCompacted says that the history asked for has been compacted away; a
	// snapshot is the way on.
	ErrCompacted = errors.New("revision has been compacted")
	// ErrFutureRevision says that a revision was asked for that the replica has
	// not applied yet.
	ErrFutureRevision = errors.New("revision is in the future")
	// ErrNotReady says that a replica holds nothing yet: its first snapshot has
	// not been received.
	ErrNotReady = errors.New("no snapshot has been received yet")
	// ErrClosed says that the thing asked has been closed.
	ErrClosed = errors.New("closed")
)

// UnansweredError says that the origin was asked and does not answer, or that every
// node which could have asked it was tried and none answers. Every other error of
// such a question leaves open whether the origin lives.
type UnansweredError struct {
	Err error // who was tried
}

func (e *UnansweredError) Error() string { return e.Err.Error() }
func (e *UnansweredError) Unwrap() error { return e.Err }

// GapError is returned for a batch that does not follow the applied revision.
type GapError struct {
	Applied int64 // the replica's revision
	Got     int64 // the revision of the batch
}

func (e *GapError) Error() string {
	return fmt.Sprintf("revision %d does not follow the applied revision %d", e.Got, e.Applied)
}

// DivergedError says that two histories which should be one are not. Nothing
// more may be applied, and trying again cannot help.
type DivergedError struct {
	Rev int64  // where the difference shows; 0 if the identities differ as a whole
	Why string // one sentence: what differs, and what to do
}

func (e *DivergedError) Error() string {
	if e.Rev == 0 {
		return "diverged: " + e.Why
	}
	return fmt.Sprintf("diverged at revision %d: %s", e.Rev, e.Why)
}

// Code says why a source refused a mirror or ended its connection. It is one
// byte on the wire.
type Code uint8

// Codes of the protocol. 0x01 to 0x03 are as old as the protocol, those from
// 0x10 are Heliograph's.
const (
	CodeOK              Code = 0x00
	CodeClusterMismatch Code = 0x01 // the hello names another cluster
	CodeObserverOnly    Code = 0x02 // not an observer, or a voter-class frame
	CodeBadVersion      Code = 0x03 // a protocol version that is not spoken
	CodeUnknownDatabase Code = 0x10 // no such database in this cluster
	CodeDiverged        Code = 0x11 // another history, or ahead of the source
	CodeSelfMirror      Code = 0x12 // the mirror is the source itself
	CodeNotAuthorized   Code = 0x13 // the identity is not allowed here
	CodeOverloaded      Code = 0x14 // too many mirrors or snapshots: retry later
	CodeNotReady        Code = 0x15 // the source has no snapshot itself yet, or is behind the mirror
	CodeCycle           Code = 0x16 // the mirror is upstream of the source
	CodeShuttingDown    Code = 0x17 // the source is stopping: try another address
	CodeHistoryGone     Code = 0x18 // the mirror fell behind the history: reconnect for a snapshot
	CodeReset           Code = 0x19 // the source's own replica was replaced: reconnect
	CodeProtocol        Code = 0x1a // malformed, oversize or unexpected frame
	CodeTimeout         Code = 0x1b // a deadline of the protocol passed
)

var codeNames = map[Code]string{
	CodeOK:              "ok",
	CodeClusterMismatch: "cluster-id mismatch",
	CodeObserverOnly:    "observer only",
	CodeBadVersion:      "bad version",
	CodeUnknownDatabase: "unknown database",
	CodeDiverged:        "diverged",
	CodeSelfMirror:      "self-mirror",
	CodeNotAuthorized:   "not authorized",
	CodeOverloaded:      "overloaded",
	CodeNotReady:        "not ready",
	CodeCycle:           "cycle",
	CodeShuttingDown:    "shutting down",
	CodeHistoryGone:     "history gone",
	CodeReset:           "reset",
	CodeProtocol:        "protocol error",
	CodeTimeout:         "timeout",
}

// String returns the code's name, as logs and metrics show it.
func (c Code) String() string {
	if s, ok := codeNames[c]; ok {
		return s
	}
	return fmt.Sprintf("code 0x%02x", uint8(c))
}

// Configuration reports whether the code tells of a mistake in somebody's
// configuration or of diverged data: shown at once, retried only slowly.
func (c Code) Configuration() bool {
	switch c {
	case CodeClusterMismatch, CodeObserverOnly, CodeBadVersion, CodeUnknownDatabase,
		CodeDiverged, CodeSelfMirror, CodeNotAuthorized, CodeCycle:
		return true
	}
	return false
}

// RefusedError is a source's refusal, or its goodbye, as the mirror sees it.
type RefusedError struct {
	Code   Code
	Detail string // the source's sentence; may be empty
}

func (e *RefusedError) Error() string {
	if e.Detail == "" {
		return "refused by the source: " + e.Code.String()
	}
	return fmt.Sprintf("refused by the source: %s: %s", e.Code, e.Detail)
}
