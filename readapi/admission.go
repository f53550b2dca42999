package readapi

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// ErrUndecided makes an error of [Config.Admit] that wraps it Unavailable instead
// of PermissionDenied: the caller may be let in later.
var ErrUndecided = errors.New("not known yet")

// ClientCertificate returns the certificate that the caller has shown and that a
// CA of Config.TLS has signed; nil if there is none. ctx is that of a call.
func ClientCertificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// open reports whether everyone may call a method.
func open(method string) bool { return strings.HasPrefix(method, "/grpc.health.v1.Health/") }

// admit decides whether a call is let in.
func (s *Server) admit(ctx context.Context, method string) error {
	if open(method) {
		return nil
	}
	if err := s.permit(ctx); err != nil {
		return err
	}
	if needsLeader(ctx) && s.cfg.UpstreamAlive() != nil {
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
}

// permit returns why a caller may not use the API, as the caller is to see it.
func (s *Server) permit(ctx context.Context) error {
	switch err := s.cfg.Admit(ctx); {
	case err == nil:
		return nil
	case errors.Is(err, ErrUndecided):
		return status.Error(codes.Unavailable, err.Error())
	default:
		return status.Error(codes.PermissionDenied, err.Error())
	}
}
