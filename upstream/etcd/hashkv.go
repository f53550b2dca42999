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
	Revision        int64  // everything up to here is hashed
	CompactRevision int64  // 0 if never compacted
	Endpoint        string // of the member that was asked
}

// HashKV asks the member that is followed for its hash at its newest revision, which
// makes it scan its database: ctx should allow minutes. The errors are
// heliograph.ErrCompacted, which passes, an *UnreachableError while no member is
// followed, and etcd's own.
//
// Asked for a revision at which it was compacted, etcd answers with a hash that it
// remembers, over records that are gone since. So it is asked for revision 0, which
// stands for the newest and has it read.
func (u *Upstream) HashKV(ctx context.Context) (HashKV, error) {
	c, err := u.reads.current()
	if err != nil {
		return HashKV{}, err
	}
	resp, err := c.hashKV(ctx, 0)
	rev := resp.GetHeader().GetRevision()
	// An etcd that was once compacted at revision 0 remembers a hash of that, too. It
	// is of an etcd that had not been compacted, and says of which revision since 3.6.
	if err == nil && resp.CompactRevision < 0 && resp.HashRevision != rev {
		resp, err = c.hashKV(ctx, rev)
	}
	err = u.translate(err)
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return HashKV{}, fmt.Errorf("etcd's hash at revision %d: %w", rev, heliograph.ErrCompacted)
	case err != nil:
		return HashKV{}, fmt.Errorf("etcd's hash: %w", err)
	}
	if err := c.same(resp.Header); err != nil {
		return HashKV{}, err
	}
	return HashKV{Hash: resp.Hash, Revision: rev, CompactRevision: max(0, resp.CompactRevision), Endpoint: c.endpoint}, nil
}

func (c *connection) hashKV(ctx context.Context, rev int64) (*pb.HashKVResponse, error) {
	return pb.NewMaintenanceClient(c.client.ActiveConnection()).HashKV(ctx, &pb.HashKVRequest{Revision: rev})
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
