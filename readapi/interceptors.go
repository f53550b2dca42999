package readapi

import (
	"context"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

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

// admit decides whether a call is let in.
func (s *Server) admit(ctx context.Context, method string) error {
	if strings.HasPrefix(method, "/grpc.health.v1.Health/") {
		return nil
	}
	if err := s.cfg.Admit(ctx); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if needsLeader(ctx) && s.cfg.UpstreamAlive() != nil {
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
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
