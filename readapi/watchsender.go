package readapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// outgoing is a response on its way to the client.
type outgoing struct {
	resp     *pb.WatchResponse
	prevKV   bool  // the previous values are still to be read
	fragment bool  // the client accepts a revision in fragments
	bytes    int64 // held for it, always more than 0
}

// watchSender sends the responses of one stream. One goroutine uses it.
type watchSender struct {
	kv      mvcc.KV
	stream  pb.Watch_WatchServer
	limit   int64 // bytes of events from which on a response is divided
	metrics *metrics
}

// send sends o, whole or divided. It blocks while the client does not read.
func (s *watchSender) send(o outgoing) error {
	if o.prevKV {
		s.addPrevKVs(s.stream.Context(), o.resp.Events)
	}
	s.metrics.watchEvents.Add(float64(len(o.resp.Events)))
	return divide(o.resp, s.limit, o.fragment, s.stream.Send)
}

// addPrevKVs reads what the events replaced. As in etcd, a value that has been
// compacted meanwhile is left out.
func (s *watchSender) addPrevKVs(ctx context.Context, events []*mvccpb.Event) {
	if len(events) == 0 {
		return
	}
	read := s.kv.Read(mvcc.ConcurrentReadTxMode, traceutil.TODO())
	defer read.End()
	for _, ev := range events {
		if ev.Type == mvccpb.Event_PUT && ev.Kv.CreateRevision == ev.Kv.ModRevision {
			continue // created: there was nothing
		}
		r, err := read.Range(ctx, ev.Kv.Key, nil, mvcc.RangeOptions{Rev: ev.Kv.ModRevision - 1})
		if err == nil && len(r.KVs) > 0 {
			ev.PrevKv = r.KVs[0]
		}
	}
}

// divide sends resp in parts whose events stay below limit bytes where
// possible. Between revisions it divides freely, for each part is then a valid
// response. Within a revision it divides only if fragments are wanted, and
// marks all parts but the revision's last as fragments.
func divide(resp *pb.WatchResponse, limit int64, fragments bool, send func(*pb.WatchResponse) error) error {
	if sizeOf(resp.Events...) < limit {
		return send(resp)
	}
	events := resp.Events
	part := func(from, to int, fragment bool) error {
		// Every part is a message of its own: gRPC may read it after Send.
		return send(&pb.WatchResponse{
			Header: resp.Header, WatchId: resp.WatchId, Events: events[from:to:to], Fragment: fragment,
		})
	}
	var bytes int64
	start, revStart := 0, 0
	for i, ev := range events {
		if i > 0 && ev.Kv.ModRevision != events[i-1].Kv.ModRevision {
			revStart = i
		}
		n := sizeOf(ev)
		if bytes+n >= limit && revStart > start {
			if err := part(start, revStart, false); err != nil {
				return err
			}
			start, bytes = revStart, sizeOf(events[revStart:i]...)
		}
		if bytes+n >= limit && fragments && i > start {
			if err := part(start, i, true); err != nil {
				return err
			}
			start, bytes = i, 0
		}
		bytes += n
	}
	return part(start, len(events), false)
}
