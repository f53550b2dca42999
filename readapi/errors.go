package readapi

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heliograph/heliograph"
)

// unavailableError is a read that cannot be answered now, in words.
type unavailableError struct{ why string }

func unavailable(format string, args ...any) error {
	return &unavailableError{fmt.Sprintf(format, args...)}
}

func (e *unavailableError) Error() string { return e.why }

func (e *unavailableError) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, e.why)
}

// translations says what clients see of an error. The first match counts.
var translations = []struct{ is, becomes error }{
	{mvcc.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{heliograph.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{mvcc.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
	{heliograph.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{heliograph.ErrNotReady, status.Error(codes.Unavailable, "this mirror holds no data yet: bootstrapping")},
	{heliograph.ErrClosed, rpctypes.ErrGRPCStopped},
	{errStopping, rpctypes.ErrGRPCStopped},
	// Not Unavailable: a client would resume its watches by itself, at revisions
	// of a history that may be another. It has to read anew, as after a compaction.
	{errReplaced, rpctypes.ErrGRPCCompacted},
}

// translate returns the status error that a client is to see for err.
func translate(err error) error {
	if err == nil {
		return nil
	}
	// An error that knows its status travels as it is, without what was
	// wrapped around it: clients compare etcd's texts.
	if known, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return known.GRPCStatus().Err()
	}
	for _, t := range translations {
		if errors.Is(err, t.is) {
			return t.becomes
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unknown, err.Error())
}
