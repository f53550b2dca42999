package readapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/etcdserver/txn"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/heliograph/heliograph/readapi/reads"
)

// kvServer answers etcdserverpb.KV.
type kvServer struct {
	pb.UnsafeKVServer // a method that etcd adds must not compile unnoticed
	*Server
}

// Range implements [pb.KVServer].
func (s *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	if err := s.fresh(ctx, r.Serializable); err != nil {
		return nil, err
	}
	kv, err := s.cfg.Replica.KV()
	if err != nil {
		return nil, err
	}
	resp, _, err := txn.Range(ctx, quiet, kv, r, true)
	if err != nil {
		return nil, err
	}
	s.fill(resp.Header)
	return resp, nil
}

// Txn implements [pb.KVServer] for transactions that only read.
func (s *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, s.cfg.MaxTxnOps); err != nil {
		return nil, err
	}
	if writes(r) {
		return nil, s.readOnly("Txn with writes")
	}
	if err := s.fresh(ctx, txn.IsTxnSerializable(r)); err != nil {
		return nil, err
	}
	kv, err := s.cfg.Replica.KV()
	if err != nil {
		return nil, err
	}
	read := kv.Read(mvcc.ConcurrentReadTxMode, traceutil.TODO())
	defer read.End()
	resp, _, err := txn.Txn(ctx, quiet, r, false, &oneRevision{kv, read}, nil, false)
	if err != nil {
		return nil, err
	}
	s.fill(resp.Header)
	return resp, nil
}

// Put implements [pb.KVServer]; it is refused, like all that follow.
func (s *kvServer) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return nil, s.readOnly("Put")
}

// DeleteRange implements [pb.KVServer].
func (s *kvServer) DeleteRange(context.Context, *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return nil, s.readOnly("DeleteRange")
}

// Compact implements [pb.KVServer].
func (s *kvServer) Compact(context.Context, *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return nil, s.readOnly("Compact")
}

// readOnly is the refusal of a call that would change something.
func (s *Server) readOnly(method string) error {
	return &reads.ReadOnlyError{Method: method, Source: s.cfg.Source()}
}

// oneRevision makes etcd's code run a whole transaction on one read view.
//
// etcd takes a transaction that holds nested ones for a write, even if they
// only read: it evaluates the compares, ends that view, and opens a write. etcd
// applies writes one at a time, so nothing comes between; here the upstream may
// apply a revision at any moment.
type oneRevision struct {
	mvcc.KV
	read mvcc.TxnRead
}

func (o *oneRevision) Read(mvcc.ReadTxMode, *traceutil.Trace) mvcc.TxnRead { return keptOpen{o.read} }

func (o *oneRevision) Write(*traceutil.Trace) mvcc.TxnWrite {
	return mvcc.NewReadOnlyTxnWrite(keptOpen{o.read})
}

// keptOpen is a view that its owner ends.
type keptOpen struct{ mvcc.TxnRead }

func (keptOpen) End() {}

// quiet is the logger for etcd's code. It discards, since requests hold users'
// keys, and does not panic where etcd does so that members cannot differ after
// a failed write: here it is a nested read whose client went away.
var quiet = zap.NewNop().WithOptions(zap.WithPanicHook(carryOn{}))

type carryOn struct{}

func (carryOn) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {}
