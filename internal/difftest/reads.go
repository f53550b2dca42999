package difftest

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

var someKey = rapid.OneOf(
	rapid.Custom(func(t *rapid.T) []byte { return fmt.Appendf(nil, "k%02d", rapid.IntRange(0, 26).Draw(t, "key")) }),
	rapid.SampledFrom([][]byte{{0}, []byte("k"), []byte("k1"), []byte("l"), []byte("zz"), {}}),
)

var someEnd = rapid.OneOf(rapid.Just([]byte(nil)), someKey, rapid.Just([]byte("l")), rapid.Just([]byte{0}))

func (tw *Twins) someRev() *rapid.Generator[int64] {
	return rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(tw.CompactAt-3, tw.CompactAt+3),
		rapid.Int64Range(tw.CompactAt, tw.Rev), rapid.Int64Range(tw.Rev-3, tw.Rev+3), rapid.Int64Range(-1, tw.Rev))
}

func (tw *Twins) someRange() *rapid.Generator[*pb.RangeRequest] {
	bound := rapid.OneOf(rapid.Just(int64(0)), rapid.Just(int64(0)), rapid.Int64Range(-1, tw.Rev+1))
	return rapid.Custom(func(t *rapid.T) *pb.RangeRequest {
		return &pb.RangeRequest{
			Key:               someKey.Draw(t, "key"),
			RangeEnd:          someEnd.Draw(t, "end"),
			Limit:             rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-1, 30)).Draw(t, "limit"),
			Revision:          tw.someRev().Draw(t, "revision"),
			SortOrder:         pb.RangeRequest_SortOrder(rapid.SampledFrom([]int{0, 0, 1, 2, 2, 9}).Draw(t, "order")),
			SortTarget:        pb.RangeRequest_SortTarget(rapid.SampledFrom([]int{0, 0, 1, 2, 3, 4, 9}).Draw(t, "target")),
			Serializable:      rapid.Bool().Draw(t, "serializable"),
			KeysOnly:          rapid.Bool().Draw(t, "keys only"),
			CountOnly:         rapid.IntRange(0, 5).Draw(t, "count only") == 0,
			MinModRevision:    bound.Draw(t, "min mod"),
			MaxModRevision:    bound.Draw(t, "max mod"),
			MinCreateRevision: bound.Draw(t, "min create"),
			MaxCreateRevision: bound.Draw(t, "max create"),
		}
	})
}

// checkWait bounds all requests of one check.
const checkWait = 5 * time.Minute

// CheckRange compares Range and RangeStream.
func (tw *Twins) CheckRange(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), checkWait)
	defer cancel()
	etcd, mirror := pb.NewKVClient(tw.Etcd), pb.NewKVClient(tw.Mirror)
	var asked tally
	rapid.Check(t, func(rt *rapid.T) {
		for _, req := range rapid.SliceOfN(tw.someRange(), 20, 20).Draw(rt, "requests") {
			e, errE := etcd.Range(ctx, req)
			m, errM := mirror.Range(ctx, req)
			anonymous(e.GetHeader())
			anonymous(m.GetHeader())
			same(rt, req, e, m, errE, errM)
			asked.note(errE)

			// etcd 3.7.3 sorts each chunk of such a stream for itself, which
			// repeats and skips keys: the truth is its Range.
			if req.SortTarget == pb.RangeRequest_KEY || req.SortOrder != pb.RangeRequest_NONE || hasBounds(req) || req.CountOnly {
				e, errE = whole(etcd.RangeStream(ctx, req))
			}
			m, errM = whole(mirror.RangeStream(ctx, req))
			same(rt, req, e, m, errE, errM)
		}
	})
	asked.require(t, tally{answered: 500, compacted: 100, future: 20})
}

func hasBounds(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// whole joins the chunks of a stream, as a client does.
func whole(s pb.KV_RangeStreamClient, err error) (*pb.RangeResponse, error) {
	all := &pb.RangeResponse{}
	for err == nil {
		var r *pb.RangeStreamResponse
		if r, err = s.Recv(); err == nil {
			proto.Merge(all, r.RangeResponse)
		}
	}
	if err != io.EOF {
		return nil, err
	}
	anonymous(all.Header)
	return all, nil
}

func (tw *Twins) someTxn(depth int) *rapid.Generator[*pb.TxnRequest] {
	compare := rapid.Custom(func(t *rapid.T) *pb.Compare {
		c := &pb.Compare{
			Key: someKey.Draw(t, "key"), RangeEnd: someEnd.Draw(t, "end"),
			Target: pb.Compare_CompareTarget(rapid.IntRange(0, 4).Draw(t, "target")),
			Result: pb.Compare_CompareResult(rapid.IntRange(0, 3).Draw(t, "result")),
		}
		n := rapid.Int64Range(0, tw.Rev).Draw(t, "number")
		switch rapid.IntRange(0, 4).Draw(t, "union") {
		case 0:
			c.TargetUnion = &pb.Compare_Version{Version: n % 5}
		case 1:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
		case 2:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
		case 3:
			c.TargetUnion = &pb.Compare_Value{Value: fmt.Append(nil, n%5)}
		case 4:
			c.TargetUnion = &pb.Compare_Lease{}
		}
		return c
	})
	ops := rapid.Custom(func(t *rapid.T) *pb.RequestOp {
		kind := rapid.IntRange(0, 20).Draw(t, "kind")
		switch {
		case kind == 0:
			return &pb.RequestOp{}
		case kind < 5 && depth > 0:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: tw.someTxn(depth-1).Draw(t, "nested")}}
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: tw.someRange().Draw(t, "range")}}
	})
	return rapid.Custom(func(t *rapid.T) *pb.TxnRequest {
		return &pb.TxnRequest{
			Compare: rapid.SliceOfN(compare, 0, 3).Draw(t, "compares"),
			Success: rapid.SliceOfN(ops, 0, 3).Draw(t, "success"),
			Failure: rapid.SliceOfN(ops, 0, 3).Draw(t, "failure"),
		}
	})
}

// CheckTxn compares transactions that only read, nested ones included.
func (tw *Twins) CheckTxn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), checkWait)
	defer cancel()
	etcd, mirror := pb.NewKVClient(tw.Etcd), pb.NewKVClient(tw.Mirror)
	var asked tally
	rapid.Check(t, func(rt *rapid.T) {
		for _, req := range rapid.SliceOfN(tw.someTxn(2), 20, 20).Draw(rt, "requests") {
			e, errE := etcd.Txn(ctx, req)
			m, errM := mirror.Txn(ctx, req)
			anonymous(e.GetHeader())
			anonymous(m.GetHeader())
			same(rt, req, e, m, errE, errM)
			asked.note(errE)
		}
	})
	asked.require(t, tally{answered: 200, compacted: 20})
}
