package readapi

import (
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/heliograph/heliograph"
)

// snapshotPieceBytes is the size of the pieces in which a snapshot is sent.
const snapshotPieceBytes = 64 << 10

// Snapshot implements [pb.MaintenanceServer]: the copy in pieces, each saying
// how many bytes remain, then its SHA-256. A copy that is being sent keeps the
// replica from compacting, so a client that takes no piece for
// Config.StallTimeout is sent away.
func (s *maintenanceServer) Snapshot(_ *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	ctx := stream.Context()
	if _, err := s.cfg.Replica.KV(); err != nil {
		return err
	}
	snap, err := s.cfg.Replica.Snapshot(ctx)
	if err != nil {
		return err
	}
	taken := make(chan struct{}, 1)
	done := make(chan error, 1)
	// The sender may be stuck in Send; returning from the handler frees it.
	s.receivers.Go(func() {
		defer snap.Release()
		done <- sendSnapshot(snap, storageVersion(s.cfg.etcdVersion()), func(resp *pb.SnapshotResponse) error {
			err := stream.Send(resp)
			select {
			case taken <- struct{}{}:
			default:
			}
			return err
		})
	})
	stall := time.NewTimer(s.cfg.StallTimeout)
	defer stall.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-taken:
			stall.Reset(s.cfg.StallTimeout)
		case <-stall.C:
			return unavailable("the client took nothing of the snapshot for %v", s.cfg.StallTimeout)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendSnapshot sends all of snap. version is the version of its schema.
func sendSnapshot(snap heliograph.Snapshot, version string, send func(*pb.SnapshotResponse) error) error {
	size := snap.Size()
	for at := int64(0); at < size; {
		// A piece is not used again: gRPC may still hold it after Send.
		piece := make([]byte, min(snapshotPieceBytes, size-at))
		if n, err := snap.ReadAt(piece, at); n < len(piece) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // to a stream, EOF would mean that all is well
			}
			return fmt.Errorf("read snapshot at %d: %w", at, err)
		}
		at += int64(len(piece))
		err := send(&pb.SnapshotResponse{RemainingBytes: uint64(size - at), Blob: piece, Version: version})
		if err != nil {
			return err
		}
	}
	sum := snap.SHA256()
	return send(&pb.SnapshotResponse{Blob: sum[:], Version: version})
}
