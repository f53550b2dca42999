package readapi

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

const (
	// minProgressInterval is etcd's lower bound for Config.ProgressInterval.
	minProgressInterval = 100 * time.Millisecond
	// sendGrace is how long an ending stream waits for a response that is
	// being sent. A client that does not read would hold it up for ever;
	// returning from the handler is what frees the sender then.
	sendGrace = 100 * time.Millisecond
)

// watchServer answers etcdserverpb.Watch.
type watchServer struct {
	pb.UnsafeWatchServer
	*Server
}

// Watch implements [pb.WatchServer].
func (s *watchServer) Watch(stream pb.Watch_WatchServer) error {
	kv, err := s.cfg.Replica.KV()
	if err != nil {
		return err
	}
	s.metrics.watchStreams.Inc()
	defer s.metrics.watchStreams.Dec()
	ws := &watchStream{
		Server:  s.Server,
		store:   kv.NewWatchStream(),
		out:     &watchSender{kv: kv, stream: stream, limit: int64(s.cfg.MaxRequestBytes), metrics: s.metrics},
		byID:    make(map[int64]*watch),
		byInner: make(map[mvcc.WatchID]*watch),
	}
	return ws.run(stream)
}

// watchStream is one stream of watches. Its loop owns all the fields; beside
// it one goroutine receives requests and one sends responses.
//
//	requests ─► loop ◄── store (mvcc's watchers)
//	             │ queue, within the byte budget
//	             ▼
//	           sender ─► client
//
// The loop takes what the store's watchers have at once, so that nothing piles
// up in mvcc's channel, whose 128 places can hold 1,000 revisions each. What
// the client has not read waits in the queue. When that is full, a watch that
// has more is parked: its watcher is cancelled, the revisions that did not fit
// are dropped, and the first of them is where a new watcher begins when the
// queue has drained.
type watchStream struct {
	*Server
	store mvcc.WatchStream
	out   *watchSender

	byID      map[int64]*watch        // by the id that the client knows
	byInner   map[mvcc.WatchID]*watch // by the watcher's id in store; not the parked
	parked    []*watch
	nextID    int64 // candidate for the next id that the client leaves to us
	lastInner mvcc.WatchID

	// outdated is how many of the responses now in the store's channel are
	// older than the newest watch or the last parking. A progress
	// notification for the whole stream among them must not be passed on: it
	// speaks for watches that it does not know.
	outdated int

	queue []outgoing
	held  int64 // bytes in the queue and being sent
}

func (ws *watchStream) run(stream pb.Watch_WatchServer) error {
	ctx := stream.Context()
	requests := make(chan *pb.WatchRequest)
	failed := make(chan error, 1)
	ws.receivers.Go(func() { receive(ctx, stream, requests, failed) })
	send := make(chan outgoing)
	sent := make(chan error, 1)
	senderDone := make(chan struct{})
	ws.receivers.Go(func() {
		defer close(senderDone)
		for o := range send {
			sent <- ws.out.send(o)
		}
	})
	defer func() {
		ws.close()
		close(send)
		grace := time.NewTimer(sendGrace)
		defer grace.Stop()
		select {
		case <-senderDone:
		case <-grace.C:
		}
	}()
	// Jitter: watches that were set up together must not all report together.
	// A timer, set anew after each report: with a ticker, reports that take
	// longer than the interval would leave no time for events.
	interval := ws.cfg.ProgressInterval
	interval += rand.N(interval / 10)
	progress := time.NewTimer(interval)
	defer progress.Stop()

	sending := int64(0) // bytes of the response being sent; 0: none
	for {
		in, out, next := requests, send, outgoing{}
		if ws.budget.full(ws.held) {
			in = nil // requests have answers, which would have to be held
		}
		if sending > 0 || len(ws.queue) == 0 {
			out = nil
		} else {
			next = ws.queue[0]
		}
		select {
		case <-ctx.Done():
			return watchEnd(context.Cause(ctx))
		case err := <-failed:
			return watchEnd(err)
		case req := <-in:
			ws.handle(ctx, req)
		case r := <-ws.store.Chan():
			ws.deliver(r)
		case out <- next:
			sending = next.bytes
			ws.queue[0] = outgoing{}
			ws.queue = ws.queue[1:]
		case err := <-sent:
			if err != nil {
				return watchEnd(err)
			}
			ws.hold(-sending)
			sending = 0
			if len(ws.parked) > 0 && ws.budget.roomy(ws.held) {
				ws.resumeParked(ctx)
			}
		case <-progress.C:
			ws.reportProgress()
			progress.Reset(interval)
		}
	}
}

// watchEnd gives a stream that its client ended the error that etcd gives it.
func watchEnd(err error) error {
	if errors.Is(err, context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

// receive passes requests on until the stream ends. A client that closes its
// sending side goes on receiving.
func receive(ctx context.Context, stream pb.Watch_WatchServer, requests chan<- *pb.WatchRequest, failed chan<- error) {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			failed <- err
			return
		}
		select {
		case requests <- req:
		case <-ctx.Done():
			return
		}
	}
}

// close ends all watches and gives back what they held.
func (ws *watchStream) close() {
	ws.store.Close()
	for r := range ws.store.Chan() {
		mvcc.ReportEventReceived(len(r.Events))
	}
	for _, w := range ws.byID {
		ws.budget.watches.Add(-places(w.key, w.end))
	}
	ws.hold(-ws.held)
}

func (ws *watchStream) hold(bytes int64) {
	ws.held += bytes
	ws.budget.used.Add(bytes)
}

// enqueue appends a response without events.
func (ws *watchStream) enqueue(o outgoing) {
	o.bytes = responseBytes
	ws.hold(o.bytes)
	ws.queue = append(ws.queue, o)
}

// answer enqueues a response to a request, with the current revision.
func (ws *watchStream) answer(resp *pb.WatchResponse) {
	resp.Header = &pb.ResponseHeader{Revision: ws.store.Rev()}
	ws.identify(resp.Header)
	ws.enqueue(outgoing{resp: resp})
}

// deliver passes on one response of a watcher.
func (ws *watchStream) deliver(r mvcc.WatchResponse) {
	mvcc.ReportEventReceived(len(r.Events))
	outdated := ws.outdated > 0
	ws.outdated = max(ws.outdated-1, 0)

	w := ws.byInner[r.WatchID]
	forAll := r.WatchID == clientv3.InvalidWatchID
	isProgress := len(r.Events) == 0 && r.CompactRevision == 0
	switch {
	case w == nil && !forAll: // cancelled or parked: from an earlier watcher
		return
	case forAll && (outdated || len(ws.parked) > 0):
		return
	case isProgress && ws.budget.full(ws.held): // it may come again; it must not cost memory
		return
	}
	o := outgoing{resp: &pb.WatchResponse{
		Header:          &pb.ResponseHeader{Revision: r.Revision},
		WatchId:         clientv3.InvalidWatchID,
		Events:          r.Events,
		CompactRevision: r.CompactRevision,
		Canceled:        r.CompactRevision != 0,
	}}
	ws.identify(o.resp.Header)
	if w != nil {
		o.resp.WatchId, o.prevKV, o.fragment = w.id, w.prevKV, w.fragment
		w.idle = w.idle && isProgress
	}
	if o.resp.Canceled {
		ws.detach(w) // as in etcd, the id stays taken until the client cancels it
	}
	if len(r.Events) == 0 {
		ws.enqueue(o)
		return
	}
	n, bytes := ws.budget.reserve(r.Events, ws.held)
	if n < len(r.Events) {
		ws.park(w, r.Events[n].Kv.ModRevision)
		o.resp.Events = slices.Clone(r.Events[:n]) // the rest must not be kept alive
	}
	if n > 0 {
		ws.held += bytes
		o.bytes = bytes
		ws.queue = append(ws.queue, o)
	}
}

// reportProgress asks for a notification for each watch that wants them and
// had no event since the last report.
func (ws *watchStream) reportProgress() {
	for _, w := range ws.byID {
		if w.progress && w.idle && w.attached {
			ws.makeRoom()
			ws.store.RequestProgress(w.inner)
		}
		w.idle = true
	}
}

// makeRoom takes from the store's channel while it is full: mvcc drops a
// notification that finds no place in it.
func (ws *watchStream) makeRoom() {
	for len(ws.store.Chan()) == cap(ws.store.Chan()) {
		ws.deliver(<-ws.store.Chan())
	}
}
