package readapi

import (
	"context"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// unary surrounds every call with one answer.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	err = s.admit(ctx, info.FullMethod)
	if err == nil {
		resp, err = handler(ctx, req)
	}
	err = translate(err)
	s.metrics.called(info.FullMethod, err)
	return resp, err
}

// stream surrounds every call with a stream of requests or answers.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := s.admit(ss.Context(), info.FullMethod)
	if err == nil {
		// Registered before it looks at the replica: what is ended for
		// having another store includes all that saw the old one.
		ctx, st := s.streams.begin(ss.Context())
		st.endless = info.FullMethod == pb.Watch_Watch_FullMethodName || info.FullMethod == healthpb.Health_Watch_FullMethodName
		st.needsLeader = needsLeader(ctx)
		if !open(info.FullMethod) {
			st.admitted = ctx
		}
		s.streams.add(st)
		err = handler(srv, &endableStream{ss, ctx})
		s.streams.remove(st)
		if why := context.Cause(ctx); err != nil && ss.Context().Err() == nil && ctx.Err() != nil {
			err = why // the server ended it: that is the error, whatever the handler made of it
		}
		st.cancel(nil)
	}
	err = translate(err)
	s.metrics.called(info.FullMethod, err)
	return err
}

// needsLeader reports whether a client wants to hear of a lost source.
func needsLeader(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	v := md.Get(rpctypes.MetadataRequireLeaderKey)
	return len(v) > 0 && v[0] == rpctypes.MetadataHasLeader
}

// endableStream is a stream whose context the server can end.
type endableStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements [grpc.ServerStream].
func (e *endableStream) Context() context.Context { return e.ctx }
