package readapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// clusterServer answers etcdserverpb.Cluster. The cluster that clients see is
// this node alone, so that those that sync their endpoints stay with it.
type clusterServer struct {
	pb.UnsafeClusterServer
	*Server
}

// MemberList implements [pb.ClusterServer]. As in etcd, the header has no
// revision. Linearizable or not makes no difference: the list is configuration.
func (s *clusterServer) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	h := &pb.ResponseHeader{}
	s.identify(h)
	return &pb.MemberListResponse{Header: h, Members: []*pb.Member{{
		ID:         s.memberID,
		Name:       s.cfg.MemberName,
		ClientURLs: s.cfg.AdvertiseClients,
	}}}, nil
}

// MemberAdd implements [pb.ClusterServer]; it is refused, like all that follow.
func (s *clusterServer) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, s.readOnly("MemberAdd")
}

// MemberRemove implements [pb.ClusterServer].
func (s *clusterServer) MemberRemove(context.Context, *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, s.readOnly("MemberRemove")
}

// MemberUpdate implements [pb.ClusterServer].
func (s *clusterServer) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, s.readOnly("MemberUpdate")
}

// MemberPromote implements [pb.ClusterServer].
func (s *clusterServer) MemberPromote(context.Context, *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, s.readOnly("MemberPromote")
}
