package readapi

import (
	"bytes"
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/txn"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/protobuf/proto"
)

// firstChunkKeys is how many keys the first chunk holds; later ones grow or
// shrink until their size is near Config.MaxRequestBytes.
const firstChunkKeys = 10

// RangeStream implements [pb.KVServer]: one Range in chunks, all read at the
// revision of the first. As in etcd, the header, more and count are in the last
// chunk only, and a compaction of that revision ends the stream with an error.
func (s *kvServer) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	ctx := stream.Context()
	if err := checkRangeStream(r); err != nil {
		return err
	}
	if err := s.fresh(ctx, r.Serializable); err != nil {
		return err
	}
	kv, err := s.cfg.Replica.KV()
	if err != nil {
		return err
	}
	// A target without an order passes the check above, yet sorts ascending.
	// Chunks that are sorted each for itself, as etcd 3.7.3 sends them, repeat
	// and skip keys; in one chunk the answer is that of Range.
	if r.CountOnly || r.SortTarget != pb.RangeRequest_KEY {
		resp, _, err := txn.Range(ctx, quiet, kv, r, true)
		if err != nil {
			return err
		}
		s.identify(resp.Header)
		return stream.Send(&pb.RangeStreamResponse{RangeResponse: resp})
	}
	chunks := &rangeChunks{kv: kv, req: proto.CloneOf(r), left: r.Limit, targetBytes: s.cfg.MaxRequestBytes}
	if chunks.left <= 0 {
		chunks.left = math.MaxInt64
	}
	chunks.req.Limit = min(firstChunkKeys, chunks.left)
	for {
		chunk, last, err := chunks.next(ctx)
		if err != nil {
			return err
		}
		if last {
			s.identify(chunk.Header)
		}
		if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: chunk}); err != nil || last {
			return err
		}
	}
}

// rangeChunks reads one Range piece by piece.
type rangeChunks struct {
	kv          mvcc.KV
	req         *pb.RangeRequest // the next piece
	rev         int64            // of the header; 0 before the first piece
	sent        int64            // keys
	left        int64            // keys that the client's limit still allows
	targetBytes int
}

// next returns the next chunk and whether it is the last.
func (c *rangeChunks) next(ctx context.Context) (chunk *pb.RangeResponse, last bool, err error) {
	resp, _, err := txn.Range(ctx, quiet, c.kv, c.req, false)
	if err != nil {
		return nil, false, err
	}
	if c.rev == 0 {
		c.rev = resp.Header.Revision
		if c.req.Revision <= 0 {
			c.req.Revision = c.rev
		}
	}
	n := int64(len(resp.Kvs))
	c.sent += n
	c.left -= n
	chunk = &pb.RangeResponse{Kvs: resp.Kvs}
	if resp.More {
		c.req.Key = append(bytes.Clone(resp.Kvs[n-1].Key), 0)
	}
	if resp.More && c.left > 0 {
		c.req.Limit = min(nextLimit(c.req.Limit, proto.Size(resp), c.targetBytes), c.left)
		return chunk, false, nil
	}
	chunk.Header = resp.Header
	chunk.Header.Revision = c.rev
	chunk.More = resp.More
	chunk.Count = c.sent
	if resp.More {
		rest, err := txn.Count(ctx, quiet, c.kv, c.req.Key, c.req.RangeEnd, c.req.Revision)
		if err != nil {
			return nil, false, err
		}
		chunk.Count += rest
	}
	return chunk, true, nil
}

// nextLimit doubles or halves the keys of a chunk when the last one was far
// from the target. It never returns 0, which would mean all keys.
func nextLimit(limit int64, gotBytes, targetBytes int) int64 {
	switch {
	case gotBytes < targetBytes/2:
		return limit * 2
	case gotBytes > targetBytes*2:
		return max(limit/2, 1)
	}
	return limit
}
