package readapi

import (
	"bytes"
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// watch is one watch of a client.
type watch struct {
	id       int64
	inner    mvcc.WatchID // its watcher; a new one after each parking
	key, end []byte
	filters  []mvcc.FilterFunc
	prevKV   bool
	fragment bool
	progress bool  // the client wants notifications
	idle     bool  // no event since the last report of progress
	resume   int64 // while parked: the first revision not yet queued
	attached bool  // it has a watcher: neither parked nor ended by a compaction
}

// handle acts on one request.
func (ws *watchStream) handle(ctx context.Context, req *pb.WatchRequest) {
	switch r := req.GetRequestUnion().(type) {
	case *pb.WatchRequest_CreateRequest:
		if r.CreateRequest == nil {
			return
		}
		id, err := ws.create(ctx, r.CreateRequest)
		resp := &pb.WatchResponse{WatchId: id, Created: true}
		if err != nil {
			resp.WatchId, resp.Canceled, resp.CancelReason = clientv3.InvalidWatchID, true, err.Error()
		}
		ws.answer(resp)
	case *pb.WatchRequest_CancelRequest:
		if w := ws.byID[r.CancelRequest.GetWatchId()]; w != nil && r.CancelRequest != nil {
			ws.remove(w)
			ws.answer(&pb.WatchResponse{WatchId: w.id, Canceled: true})
		}
	case *pb.WatchRequest_ProgressRequest:
		// Parked watches have not progressed. As in etcd, a request that
		// cannot be answered truly is not answered.
		if r.ProgressRequest != nil && len(ws.parked) == 0 {
			ws.makeRoom()
			ws.store.RequestProgressAll()
		}
	}
}

// create opens a watch and returns its id. The error's text is the reason that
// the client gets.
func (ws *watchStream) create(ctx context.Context, r *pb.WatchCreateRequest) (int64, error) {
	if r.StartRevision < 0 {
		return 0, rpctypes.ErrCompacted
	}
	w := &watch{
		key: r.Key, filters: filtersOf(r),
		prevKV: r.PrevKv, fragment: r.Fragment, progress: r.ProgressNotify, idle: true,
	}
	if len(w.key) == 0 {
		w.key = []byte{0} // the smallest key
	}
	// To mvcc no end is a single key, and an empty one is all keys from key on.
	switch {
	case len(r.RangeEnd) == 1 && r.RangeEnd[0] == 0:
		w.end = []byte{}
	case len(r.RangeEnd) > 0:
		if bytes.Compare(w.key, r.RangeEnd) >= 0 {
			return 0, mvcc.ErrEmptyWatcherRange
		}
		w.end = r.RangeEnd
	}
	w.id = r.WatchId
	if w.id == clientv3.AutoWatchID {
		for ws.byID[ws.nextID] != nil {
			ws.nextID++
		}
		w.id = ws.nextID
	} else if ws.byID[w.id] != nil {
		return 0, mvcc.ErrWatcherDuplicateID
	}
	if !ws.budget.open(places(w.key, w.end)) {
		return 0, rpctypes.ErrTooManyRequests
	}
	if err := ws.attach(ctx, w, r.StartRevision); err != nil {
		ws.budget.watches.Add(-places(w.key, w.end))
		return 0, err
	}
	ws.byID[w.id] = w
	if r.WatchId == clientv3.AutoWatchID {
		ws.nextID++ // an id that was ours is not given again
	}
	return w.id, nil
}

// attach gives w a watcher from rev on; 0 means after the current revision.
func (ws *watchStream) attach(ctx context.Context, w *watch, rev int64) error {
	ws.lastInner++
	if _, err := ws.store.Watch(ctx, ws.lastInner, w.key, w.end, rev, w.filters...); err != nil {
		return err
	}
	w.inner, w.attached = ws.lastInner, true
	ws.byInner[w.inner] = w
	ws.outdated = len(ws.store.Chan())
	return nil
}

// detach ends w's watcher, if it has one. What that has left in the channel is
// nobody's.
func (ws *watchStream) detach(w *watch) {
	if w.attached {
		_ = ws.store.Cancel(w.inner) // it exists: only this loop cancels
		delete(ws.byInner, w.inner)
		w.attached = false
	}
}

// remove ends w. A parked watch stays in the list of the parked, unseen.
func (ws *watchStream) remove(w *watch) {
	ws.detach(w)
	delete(ws.byID, w.id)
	ws.budget.watches.Add(-places(w.key, w.end))
}

// park ends w's watcher and remembers that rev is the first revision to read
// again.
func (ws *watchStream) park(w *watch, rev int64) {
	ws.detach(w)
	w.resume = rev
	ws.parked = append(ws.parked, w)
	ws.outdated = len(ws.store.Chan())
	ws.metrics.watchParked.Inc()
}

// resumeParked gives the parked watches watchers again.
func (ws *watchStream) resumeParked(ctx context.Context) {
	parked := ws.parked
	ws.parked = nil
	for _, w := range parked {
		if ws.byID[w.id] != w {
			continue // cancelled meanwhile
		}
		if err := ws.attach(ctx, w, w.resume); err != nil {
			ws.park(w, w.resume) // the stream is closing; nothing reads this list again
		}
	}
}

func filtersOf(r *pb.WatchCreateRequest) []mvcc.FilterFunc {
	var filters []mvcc.FilterFunc
	for _, f := range r.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			filters = append(filters, func(e *mvccpb.Event) bool { return e.Type == mvccpb.Event_PUT })
		case pb.WatchCreateRequest_NODELETE:
			filters = append(filters, func(e *mvccpb.Event) bool { return e.Type == mvccpb.Event_DELETE })
		}
	}
	return filters
}
