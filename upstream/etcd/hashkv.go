package etcd

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/heliograph/heliograph"
)

// HashKV is etcd's hash over the history of one of its members.
type HashKV struct {
	Hash            uint32
	CompactRevision int64  // 0 if never compacted
	Endpoint        string // of the member that was asked
}

// HashKV asks the member that is followed for its hash at rev, which makes it scan
// its database: ctx should allow minutes. The errors are heliograph.ErrCompacted
// and ErrFutureRevision, an *UnreachableError while no member is followed, and
// etcd's own.
func (u *Upstream) HashKV(ctx context.Context, rev int64) (HashKV, error) {
	c, err := u.reads.current()
	if err != nil {
		return HashKV{}, err
	}
	resp, err := pb.NewMaintenanceClient(c.client.ActiveConnection()).HashKV(ctx, &pb.HashKVRequest{Revision: rev})
	err = u.translate(err)
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return HashKV{}, fmt.Errorf("etcd's hash at revision %d: %w", rev, heliograph.ErrCompacted)
	case errors.Is(err, rpctypes.ErrFutureRev):
		return HashKV{}, fmt.Errorf("etcd's hash at revision %d: %w", rev, heliograph.ErrFutureRevision)
	case err != nil:
		return HashKV{}, fmt.Errorf("etcd's hash at revision %d: %w", rev, err)
	}
	if err := c.same(resp.Header); err != nil {
		return HashKV{}, err
	}
	return HashKV{Hash: resp.Hash, CompactRevision: max(0, resp.CompactRevision), Endpoint: c.endpoint}, nil
}

// current returns the connection that reads go over.
func (r *readIndex) current() (*connection, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil, &UnreachableError{Err: r.err}
	}
	return r.conn, nil
}
