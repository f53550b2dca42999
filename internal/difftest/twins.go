package difftest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/heliograph/heliograph/internal/etcdtest"
)

// Twins are a real etcd and a mirror of it, at one revision.
type Twins struct {
	Etcd      grpc.ClientConnInterface
	Mirror    grpc.ClientConnInterface // set by the caller before the first check
	Rev       int64
	CompactAt int64 // the compaction revision
}

// New makes a history of some hundred revisions, the first half of it compacted,
// on 25 keys. Nothing else may write to the cluster.
func New(tb testing.TB, cluster *etcdtest.Cluster) *Twins {
	tb.Helper()
	c := cluster.Client(tb)
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	key := func(i int) string { return fmt.Sprintf("k%02d", i%25) }
	lease, err := c.Grant(ctx, 3600)
	if err != nil {
		tb.Fatal(err)
	}
	tw := &Twins{Etcd: Dial(tb, cluster.Endpoints()[0])}
	for i := range 400 {
		var ops []clientv3.Op
		switch i % 7 {
		case 3:
			ops = append(ops, clientv3.OpDelete(key(i*3)))
		case 5:
			ops = append(ops, clientv3.OpDelete(key(i), clientv3.WithRange(key(i)+"~")),
				clientv3.OpPut(key(i+7), "t"), clientv3.OpPut(key(i+11), fmt.Sprint(i), clientv3.WithLease(lease.ID)))
		case 6:
			ops = append(ops, clientv3.OpPut(key(i), ""))
		default:
			ops = append(ops, clientv3.OpPut(key(i*i), fmt.Sprint(i%5)))
		}
		resp, err := c.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			tb.Fatal(err)
		}
		tw.Rev = resp.Header.Revision
		if i == 200 {
			tw.CompactAt = tw.Rev
		}
	}
	if _, err := c.Compact(ctx, tw.CompactAt, clientv3.WithCompactPhysical()); err != nil {
		tb.Fatal(err)
	}
	return tw
}

// Dial returns a bare connection to whatever speaks etcd's API at a URL or
// host:port, without TLS. It is closed when the test ends.
func Dial(tb testing.TB, url string) *grpc.ClientConn {
	tb.Helper()
	c, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// anonymous removes from a header what must differ.
func anonymous(h *pb.ResponseHeader) {
	if h != nil {
		h.MemberId, h.RaftTerm = 0, 0
	}
}

// tally counts what the answers were, so that a run that asked for nothing worth
// comparing fails.
type tally struct{ answered, compacted, future int }

func (n *tally) note(err error) {
	switch rpctypes.Error(err) {
	case nil:
		n.answered++
	case rpctypes.ErrCompacted:
		n.compacted++
	case rpctypes.ErrFutureRev:
		n.future++
	}
}

func (n *tally) require(tb testing.TB, least tally) {
	tb.Helper()
	if testing.Short() { // rapid makes a fifth of the checks then
		least = tally{answered: least.answered / 5, compacted: least.compacted / 5, future: least.future / 5}
	}
	tb.Logf("answers compared: %+v", *n)
	if n.answered < least.answered || n.compacted < least.compacted || n.future < least.future {
		tb.Errorf("answers compared: %+v, want at least %+v", *n, least)
	}
}

// same compares an answer, or an error, of both.
func same(rt *rapid.T, req proto.Message, etcd, mirror proto.Message, etcdErr, mirrorErr error) {
	we, wm := status.Convert(etcdErr), status.Convert(mirrorErr)
	if we.Code() != wm.Code() || we.Message() != wm.Message() {
		rt.Fatalf("%v:\netcd:   %v\nmirror: %v", req, we, wm)
	}
	if etcdErr == nil && !proto.Equal(etcd, mirror) {
		rt.Fatalf("%v:\netcd:   %v\nmirror: %v", req, etcd, mirror)
	}
}
