package readapi

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maxScans is how many hashes are computed at once: each reads the whole
// database, and clients can ask for any number.
const maxScans = 2

// maintenanceServer answers etcdserverpb.Maintenance.
type maintenanceServer struct {
	pb.UnsafeMaintenanceServer
	*Server
	scans chan struct{} // holds one token for each hash being computed
}

// Status implements [pb.MaintenanceServer]. The node is its own leader, since
// clients take 0 for a broken member; raft_index is the applied revision. A
// source out of reach is named among the errors.
func (s *maintenanceServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	if _, err := s.cfg.Replica.KV(); err != nil {
		return nil, err
	}
	total, inUse := s.cfg.Replica.Size()
	header := s.header(0)
	resp := &pb.StatusResponse{
		Header:           header,
		Version:          s.cfg.etcdVersion(),
		StorageVersion:   storageVersion(s.cfg.etcdVersion()),
		DbSize:           total,
		DbSizeInUse:      inUse,
		Leader:           s.memberID,
		RaftIndex:        uint64(header.Revision),
		RaftAppliedIndex: uint64(header.Revision),
		RaftTerm:         raftTerm,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if err := s.cfg.UpstreamAlive(); err != nil {
		resp.Errors = append(resp.Errors, fmt.Sprintf("the source, %s, cannot be reached: %v", s.cfg.Source(), err))
	}
	return resp, nil
}

// storageVersion is the version of a file's schema in an etcd of version v,
// which tells it from 3.6 on; "" before.
func storageVersion(v string) string {
	major, rest, _ := strings.Cut(v, ".")
	minor, _, ok := strings.Cut(rest, ".")
	n, err := strconv.Atoi(minor)
	if !ok || err != nil || major != "3" || n < 6 {
		return ""
	}
	return major + "." + minor + ".0"
}

// HashKV implements [pb.MaintenanceServer].
func (s *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if err := s.beginScan(ctx); err != nil {
		return nil, err
	}
	defer s.endScan()
	hash, compact, current, err := s.cfg.Replica.HashKV(ctx, r.Revision)
	if err != nil {
		return nil, err
	}
	resp := &pb.HashKVResponse{Header: s.header(current), Hash: hash, CompactRevision: compact, HashRevision: r.Revision}
	if r.Revision == 0 {
		resp.HashRevision = current
	}
	return resp, nil
}

// Hash implements [pb.MaintenanceServer].
func (s *maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	if err := s.beginScan(ctx); err != nil {
		return nil, err
	}
	defer s.endScan()
	hash, rev, err := s.cfg.Replica.Hash(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: s.header(rev), Hash: hash}, nil
}

// beginScan waits for a place among the scans; endScan gives it back.
func (s *maintenanceServer) beginScan(ctx context.Context) error {
	if _, err := s.cfg.Replica.KV(); err != nil {
		return err
	}
	select {
	case s.scans <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *maintenanceServer) endScan() { <-s.scans }

// Alarm implements [pb.MaintenanceServer]: a mirror raises none of its own and
// changes none.
func (s *maintenanceServer) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_GET {
		return nil, s.readOnly("Alarm change")
	}
	return &pb.AlarmResponse{Header: s.header(0)}, nil
}

// Defragment implements [pb.MaintenanceServer]; it is refused, like all that follow.
func (s *maintenanceServer) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return nil, s.readOnly("Defragment")
}

// MoveLeader implements [pb.MaintenanceServer].
func (s *maintenanceServer) MoveLeader(context.Context, *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	return nil, s.readOnly("MoveLeader")
}

// Downgrade implements [pb.MaintenanceServer].
func (s *maintenanceServer) Downgrade(context.Context, *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return nil, s.readOnly("Downgrade")
}
