package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/heliograph/heliograph"
)

// errStaleToken says that etcd no longer takes the token of a stream. A new
// connection brings a new one.
var errStaleToken = errors.New("etcd no longer accepts the authentication token")

// errTooBig says that a revision is larger than heliograph.MaxBatchBytes.
var errTooBig = errors.New("too big for a batch")

// errResponseTooBig says that etcd sent a response that is over the limit.
var errResponseTooBig = errors.New("a response of etcd was too big")

// UnreachableError is returned by [Upstream.ReadIndex] when etcd could not be
// asked.
type UnreachableError struct {
	Err error // why
}

func (e *UnreachableError) Error() string { return fmt.Sprintf("etcd is unreachable: %v", e.Err) }
func (e *UnreachableError) Unwrap() error { return e.Err }

// DeniedError says that etcd knows the node and refuses it. Only a change of
// its users or of the node's configuration can help.
type DeniedError struct {
	Username string // empty if none is configured
	Err      error  // etcd's answer
}

func (e *DeniedError) Error() string {
	switch {
	case e.Username == "":
		return fmt.Sprintf("etcd requires a user: configure one with the role root (%v)", e.Err)
	case errors.Is(e.Err, rpctypes.ErrAuthFailed):
		return fmt.Sprintf("etcd does not accept the name and password of user %q (%v)", e.Username, e.Err)
	default:
		return fmt.Sprintf("etcd refuses user %q: a mirror reads everything, which takes the role root: etcdctl user grant-role %s root (%v)",
			e.Username, e.Username, e.Err)
	}
}

func (e *DeniedError) Unwrap() error { return e.Err }

// silentError says that etcd sent no events although it has some.
type silentError struct {
	head    int64 // etcd's revision
	silence time.Duration
}

func (e *silentError) Error() string {
	return fmt.Sprintf("etcd is at revision %d, but sent no event for %s", e.head, e.silence)
}

// gapError says that etcd left out a revision.
type gapError struct {
	want, got int64
}

func (e *gapError) Error() string {
	return fmt.Sprintf("etcd sent revision %d where %d was due", e.got, e.want)
}

// compactedError says that a snapshot is the way on, because etcd has compacted
// what is needed. It is a heliograph.ErrCompacted.
type compactedError struct {
	need      int64 // the first revision that is missing
	compacted int64 // etcd's compaction revision; 0 if not known
}

func (e *compactedError) Error() string {
	if e.compacted == 0 {
		return fmt.Sprintf("revision %d: %v", e.need, heliograph.ErrCompacted)
	}
	return fmt.Sprintf("revision %d: %v by a compaction at %d", e.need, heliograph.ErrCompacted, e.compacted)
}

func (e *compactedError) Unwrap() error { return heliograph.ErrCompacted }

// needsSnapshot reports whether a snapshot is the way on after err.
func needsSnapshot(err error) bool {
	return errors.Is(err, heliograph.ErrCompacted) || errors.Is(err, errTooBig)
}

// translate turns what a call to etcd returned into one of this package's
// errors where the difference matters, and else into etcd's own.
func (u *Upstream) translate(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok && s.Code() == codes.ResourceExhausted &&
		strings.Contains(s.Message(), "received message larger than max") {
		return fmt.Errorf("%w: %s", errResponseTooBig, s.Message())
	}
	err = rpctypes.Error(named(err))
	switch {
	case errors.Is(err, rpctypes.ErrInvalidAuthToken), errors.Is(err, rpctypes.ErrAuthOldRevision):
		return fmt.Errorf("%w: %w", errStaleToken, err)
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty),
		errors.Is(err, rpctypes.ErrAuthFailed):
		return &DeniedError{Username: u.cfg.Username, Err: err}
	}
	return err
}

// unnamed are errors of etcd's access control that the streams of etcd 3.5 send as
// they are, without a code.
var unnamed = map[string]error{
	"auth: permission denied":         rpctypes.ErrGRPCPermissionDenied,
	"auth: user name is empty":        rpctypes.ErrGRPCUserEmpty,
	"auth: invalid auth token":        rpctypes.ErrGRPCInvalidAuthToken,
	"auth: revision in header is old": rpctypes.ErrGRPCAuthOldRevision,
}

// named returns the error that etcd should have sent instead of err.
func named(err error) error {
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unknown && unnamed[s.Message()] != nil {
		return unnamed[s.Message()]
	}
	return err
}

// canceledError says that etcd ended a watch. The reason is etcd's, with or
// without the form of a gRPC error.
type canceledError struct {
	reason string
}

func (e *canceledError) Error() string {
	return fmt.Sprintf("watch cancelled by etcd: %.200q", e.reason)
}

// Unwrap returns the error that the reason tells of, if it is a known one.
func (e *canceledError) Unwrap() error {
	for _, known := range []error{
		rpctypes.ErrGRPCInvalidAuthToken, rpctypes.ErrGRPCAuthOldRevision,
		rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrGRPCUserEmpty,
	} {
		if strings.Contains(e.reason, rpctypes.ErrorDesc(known)) {
			return rpctypes.Error(known)
		}
	}
	return nil
}

// unanswered puts into words, with the way out, that nothing answers at an
// endpoint.
func unanswered(endpoint string, err error) error {
	if unavailable(err) {
		return fmt.Errorf("no answer from etcd at %s: is it running there, and does it speak TLS exactly if the endpoint is https? (%w)", endpoint, err)
	}
	return err
}

// unavailable reports whether err says that nobody has answered.
func unavailable(err error) bool {
	code := codes.OK
	if s, ok := status.FromError(err); ok {
		code = s.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

// gone reports whether err says that there is no etcd that could take a write: none
// at all, or one without a leader. One that does not agree about certificates is
// there.
func gone(err error) bool {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.Unavailable
	}
	said := err.Error()
	return unavailable(err) && !strings.Contains(said, "tls: ") && !strings.Contains(said, "x509: ")
}
