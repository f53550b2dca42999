package readapi

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// leaderless is how many looks in a row must find the source out of reach
// before open watches that need it are ended. As in etcd, new ones are refused
// at once, but setting up thousands of watches again costs more than a second
// look.
const leaderless = 3

// monitor ends the watches that have lost what they follow, and the streams of
// those who are admitted no longer, and keeps the gRPC health status true: serving
// as soon as there is data.
func (s *Server) monitor(ctx context.Context) {
	tick := time.NewTicker(s.cfg.LeaderInterval)
	defer tick.Stop()
	var seen mvcc.WatchableKV
	failures := 0
	s.setHealth(false)
	for {
		changed := s.cfg.Replica.Changed()
		kv, err := s.cfg.Replica.KV()
		if err != nil {
			kv = nil
		}
		if kv != seen {
			if seen != nil {
				n := s.streams.end(errReplaced, func(st *stream) bool { return st.endless })
				s.cfg.Log.Warn("store replaced, watches ended", "streams", n)
			}
			seen = kv
			s.setHealth(kv != nil)
		}
		if seen != nil {
			changed = nil // every revision would wake it
		}
		select {
		case <-changed:
		case <-tick.C:
			// First of all whether the contents are still there: those who are turned
			// away resume by themselves, and those who watched what is gone must not.
			if kv, err := s.cfg.Replica.KV(); seen != nil && (err != nil || kv != seen) {
				continue
			}
			if n := s.streams.recheck(s.permit); n > 0 {
				s.cfg.Log.Warn("callers are admitted no longer, streams ended", "streams", n)
			}
			if err := s.cfg.UpstreamAlive(); err == nil {
				failures = 0
			} else if failures++; failures >= leaderless {
				n := s.streams.end(rpctypes.ErrGRPCNoLeader, func(st *stream) bool { return st.needsLeader })
				if n > 0 {
					s.cfg.Log.Warn("source out of reach, watches that need it ended", "streams", n, "err", err)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) setHealth(serving bool) {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		st = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", st)
}
