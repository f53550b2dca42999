// Package reads is for Go programs that read from a mirror: it says what a
// read needs, and recognises a mirror's refusals.
//
// [WithMaxStaleness] and [WithMinRevision] add metadata to the context of any
// etcd client; a real etcd ignores it. [Error] turns what the client returned
// into an error that [errors.Is] and [errors.As] understand:
//
//	ctx = reads.WithMaxStaleness(ctx, 5*time.Second)
//	resp, err := client.Get(ctx, "config", clientv3.WithSerializable())
//	...
//	_, err = client.Put(ctx, "config", "x")
//	if errors.Is(reads.Error(err), reads.ErrReadOnly) {
//		// write to the source instead; the error's text names it
//	}
//
// The package depends on gRPC only, not on a server.
package reads

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Metadata keys of a request.
const (
	// MaxStalenessKey holds a duration as [time.ParseDuration] reads it.
	MaxStalenessKey = "heliograph-max-staleness"
	// MinRevisionKey holds a revision in decimal.
	MinRevisionKey = "heliograph-min-revision"
)

// WithMaxStaleness makes a mirror refuse, with Unavailable, a serializable
// read that it could only answer with data older than d: unless the mirror was
// known to hold the source's newest revision at some moment within the last d.
// Linearizable reads are never stale, and ignore it.
func WithMaxStaleness(ctx context.Context, d time.Duration) context.Context {
	return metadata.AppendToOutgoingContext(ctx, MaxStalenessKey, d.String())
}

// WithMinRevision makes a mirror answer a read only when it has applied rev;
// it waits for that within the context's deadline. A program that wrote to the
// source and passes the write's revision reads its own write, without a round
// trip to the source if the read is serializable.
func WithMinRevision(ctx context.Context, rev int64) context.Context {
	return metadata.AppendToOutgoingContext(ctx, MinRevisionKey, strconv.FormatInt(rev, 10))
}

// ErrReadOnly is what every refused write is: a mirror accepts none, and
// trying again cannot help. On the client it is recognised in what [Error]
// returns.
var ErrReadOnly = errors.New("this is a read-only mirror")

// What marks the refusal on the wire, as a google.rpc.ErrorInfo beside the
// status FailedPrecondition.
const (
	errorDomain    = "heliograph"
	reasonReadOnly = "READ_ONLY"
	fieldMethod    = "method"
	fieldSource    = "source"
)

// ReadOnlyError is the refusal of one call; it is [ErrReadOnly].
type ReadOnlyError struct {
	Method string // what was refused, such as Put
	Source string // where it would be accepted, in words: cluster and address
}

func (e *ReadOnlyError) Error() string {
	return fmt.Sprintf("%s refused: %v; send it to the source, %s", e.Method, ErrReadOnly, e.Source)
}

// Is makes every ReadOnlyError match [ErrReadOnly].
func (e *ReadOnlyError) Is(target error) bool { return target == ErrReadOnly }

// GRPCStatus returns what travels: FailedPrecondition with the sentence of
// [ReadOnlyError.Error] and an ErrorInfo from which [Error] reads it back.
func (e *ReadOnlyError) GRPCStatus() *status.Status {
	st := status.New(codes.FailedPrecondition, e.Error())
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{
		Domain:   errorDomain,
		Reason:   reasonReadOnly,
		Metadata: map[string]string{fieldMethod: e.Method, fieldSource: e.Source},
	})
	if err != nil { // only names that are not UTF-8 cannot travel as details
		return st
	}
	return detailed
}

// Error returns err as a *[ReadOnlyError] if it is a mirror's refusal of a
// write, whatever client it came through, and err itself otherwise.
func Error(err error) error {
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.FailedPrecondition {
		return err
	}
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if ok && info.GetDomain() == errorDomain && info.GetReason() == reasonReadOnly {
			return &ReadOnlyError{Method: info.GetMetadata()[fieldMethod], Source: info.GetMetadata()[fieldSource]}
		}
	}
	return err
}
