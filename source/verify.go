package source

import (
	"context"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// maxVerifies bounds the verify requests of one mirror that wait for an answer. A
// mirror has one at a time, but may have given earlier ones up.
const maxVerifies = 8

// verifies are a mirror's requests, by id.
type verifies chan uint64

func (v verifies) ask(id uint64) error {
	select {
	case v <- id:
		return nil
	default:
		return end(heliograph.CodeProtocol, "more than %d verify requests at once", maxVerifies)
	}
}

// answerVerifies answers the mirror's verify requests, one after the other.
func (m *mirror) answerVerifies(ctx context.Context) error {
	for {
		var id uint64
		select {
		case id = <-m.verifies:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := m.control.post(ctx, m.srv.verify(ctx, id)); err != nil {
			return err
		}
		m.srv.metrics.verifications.Inc()
	}
}

func (s *Server) verify(ctx context.Context, id uint64) wire.VerifyReply {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.VerifyWait)
	defer cancel()
	v := s.cfg.Verify(ctx)
	// That this node is unequal is its own trouble: the mirror compares with etcd.
	if v.Result != heliograph.VerifyEqual && v.Result != heliograph.VerifyUnequal || v.Revision < 1 {
		if v.Why == "" {
			v.Why = "the source does not say why"
		}
		return wire.VerifyReply{ID: id, ErrorDetail: v.Why}
	}
	return wire.VerifyReply{
		ID: id, LSN: v.Revision, CompactLSN: v.CompactRevision,
		EtcdHash: v.EtcdHash, Hash: v.Hash, Endpoint: v.EtcdEndpoint,
	}
}
