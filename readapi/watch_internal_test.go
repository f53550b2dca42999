package readapi

import (
	"path/filepath"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
)

// nowhere is a Replica of which only the origin is asked.
type nowhere struct{ Replica }

func (nowhere) Origin() heliograph.Origin { return heliograph.Origin{} }

// idleStream returns a watch stream whose loop does not run, so that a test
// decides what comes when, and its store.
func idleStream(t *testing.T, perStream int64) (*watchStream, mvcc.WatchableKV) {
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path, cfg.MmapSize = filepath.Join(t.TempDir(), "db"), 1<<20
	be := backend.New(cfg)
	kv := mvcc.New(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
	budget := &watchBudget{perStream: perStream, total: 1 << 20, maxWatches: 10}
	m, err := newMetrics(nil, budget)
	if err != nil {
		t.Fatal(err)
	}
	ws := &watchStream{
		Server:  &Server{cfg: Config{Replica: nowhere{}}, budget: budget, metrics: m},
		store:   kv.NewWatchStream(),
		byID:    make(map[int64]*watch),
		byInner: make(map[mvcc.WatchID]*watch),
	}
	t.Cleanup(func() {
		ws.close()
		kv.Close()
		be.Close()
	})
	return ws, kv
}

func create(id, rev int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{WatchId: id, Key: []byte("a"), StartRevision: rev},
	}}
}

var askProgress = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}

// progressForAll reports whether the queue announces progress for all watches.
func (ws *watchStream) progressForAll() bool {
	for _, o := range ws.queue {
		if o.resp.WatchId == clientv3.InvalidWatchID && !o.resp.Created {
			return true
		}
	}
	return false
}

func TestProgressSpeaksForKnownWatches(t *testing.T) {
	ws, kv := idleStream(t, 1<<20)
	kv.Put([]byte("a"), nil, lease.NoLease)
	ws.handle(t.Context(), create(1, 0))
	ws.handle(t.Context(), askProgress)
	ws.deliver(<-ws.store.Chan())
	if !ws.progressForAll() {
		t.Error("progress that is true was not announced")
	}
}

func TestProgressDoesNotSpeakForALaterWatch(t *testing.T) {
	ws, kv := idleStream(t, 1<<20)
	kv.Put([]byte("a"), nil, lease.NoLease)
	ws.handle(t.Context(), create(1, 0))
	ws.handle(t.Context(), askProgress)  // answered by the store: all watches have revision 2
	ws.handle(t.Context(), create(2, 1)) // which has yet to be told of revision 2
	ws.deliver(<-ws.store.Chan())
	if ws.progressForAll() {
		t.Error("progress was announced to a watch that had nothing yet")
	}
}

func TestProgressDoesNotSpeakForAWatchThatWasParked(t *testing.T) {
	ws, kv := idleStream(t, 2*responseBytes)
	ws.handle(t.Context(), create(1, 0))
	kv.Put([]byte("a"), nil, lease.NoLease)
	kv.Put([]byte("a"), nil, lease.NoLease)
	ws.handle(t.Context(), askProgress)
	ws.deliver(<-ws.store.Chan()) // revision 2 fills the queue
	ws.deliver(<-ws.store.Chan()) // revision 3 does not fit
	if len(ws.parked) != 1 || ws.parked[0].resume != 3 {
		t.Fatalf("parked: %v", ws.parked)
	}
	ws.hold(-ws.held) // the client has read
	ws.resumeParked(t.Context())
	ws.deliver(<-ws.store.Chan()) // the progress, which counted revision 3 as sent
	if ws.progressForAll() {
		t.Error("progress was announced to a watch that had not had revision 3")
	}
	r := <-ws.store.Chan()
	if len(r.Events) != 1 || r.Events[0].Kv.ModRevision != 3 {
		t.Errorf("resumed with %v, want revision 3", r)
	}
}
