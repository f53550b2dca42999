package readapi

import (
	"bytes"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// leaseServer answers etcdserverpb.Lease. Mirrored leases do not run down
// here: the source alone decides when they end, which arrives as deletes.
type leaseServer struct {
	pb.UnsafeLeaseServer
	*Server
}

// LeaseTimeToLive implements [pb.LeaseServer]. TTL is the granted one, since only
// the source knows what is left of it; an unknown lease has the TTL -1, as in
// etcd. The keys are sorted.
func (s *leaseServer) LeaseTimeToLive(_ context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if _, err := s.cfg.Replica.KV(); err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header(0), ID: r.ID, TTL: -1}
	granted, keys, ok := s.cfg.Replica.Lease(r.ID)
	if !ok {
		return resp, nil
	}
	resp.TTL, resp.GrantedTTL = granted, granted
	if r.Keys {
		slices.SortFunc(keys, bytes.Compare)
		resp.Keys = keys
	}
	return resp, nil
}

// LeaseLeases implements [pb.LeaseServer]. The ids are sorted.
func (s *leaseServer) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	if _, err := s.cfg.Replica.KV(); err != nil {
		return nil, err
	}
	ids := slices.Sorted(slices.Values(s.cfg.Replica.Leases()))
	resp := &pb.LeaseLeasesResponse{Header: s.header(0), Leases: make([]*pb.LeaseStatus, len(ids))}
	for i, id := range ids {
		resp.Leases[i] = &pb.LeaseStatus{ID: id}
	}
	return resp, nil
}

// LeaseGrant implements [pb.LeaseServer]; it is refused, like all that follow.
func (s *leaseServer) LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return nil, s.readOnly("LeaseGrant")
}

// LeaseRevoke implements [pb.LeaseServer].
func (s *leaseServer) LeaseRevoke(context.Context, *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return nil, s.readOnly("LeaseRevoke")
}

// LeaseKeepAlive implements [pb.LeaseServer].
func (s *leaseServer) LeaseKeepAlive(pb.Lease_LeaseKeepAliveServer) error {
	return s.readOnly("LeaseKeepAlive")
}
