package readapi

import (
	"crypto/sha256"
	"encoding/binary"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// raftTerm stands in every header: a mirror has no raft log, and clients take
// 0 for a member that has never been in a cluster.
const raftTerm = 1

// memberID derives a node's etcd member id from its name: the same after every
// restart, and never 0, which etcd uses for no member.
func memberID(name string) uint64 {
	sum := sha256.Sum256([]byte("heliograph member " + name))
	return max(binary.BigEndian.Uint64(sum[:]), 1)
}

// header returns the header of an answer that was read at rev; 0 means the
// replica's current revision.
func (s *Server) header(rev int64) *pb.ResponseHeader {
	h := &pb.ResponseHeader{Revision: rev}
	s.fill(h)
	return h
}

// fill completes a header made by etcd's code, which sets the revision only.
func (s *Server) fill(h *pb.ResponseHeader) {
	if h.Revision == 0 {
		h.Revision = s.cfg.Replica.Applied()
	}
	s.identify(h)
}

// identify sets the fields that do not depend on what was read.
func (s *Server) identify(h *pb.ResponseHeader) {
	h.ClusterId = s.cfg.Replica.Origin().EtcdID
	h.MemberId = s.memberID
	h.RaftTerm = raftTerm
}
