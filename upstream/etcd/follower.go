package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
)

// sliceBytes is how much is applied between two looks at the stream. Watchers
// that are done should be cancelled before etcd sends them its next pass.
const sliceBytes = 256 << 10

// follower follows etcd over one connection: a goroutine receives the stream,
// one polls, one learns leases, one watches for silence, and one decides and
// applies.
type follower struct {
	u       *Upstream
	c       *connection
	replica heliograph.Replica
	tiling  *tiling
	encode  encoder

	stream    pb.Watch_WatchClient
	responses chan *pb.WatchResponse
	poll      *poller
	leases    *leases
	waiting   atomic.Int64 // since when the stream is waited for, in Unix nanoseconds; 0 while it is not
	expected  atomic.Int64 // the first revision that has not come

	probe    int64         // the watcher that asks for the compaction revision; 0 if none
	patience time.Duration // how long events may be owed
	matched  bool          // the replica's last revision is etcd's
	behind   int           // tiling.behind as counted so far
}

func newFollower(u *Upstream, c *connection) *follower {
	f := &follower{
		u:         u,
		c:         c,
		replica:   u.cfg.Replica,
		responses: make(chan *pb.WatchResponse),
	}
	f.tiling = newTiling(f.replica.Applied(), c.head, u.cfg.HeldBytes, u.tooBig > 0)
	f.poll = newPoller(u, c)
	f.leases = newLeases(u, c)
	// To serve a watcher that is far behind, etcd reads all that it is behind
	// by, which can take long: be more patient each time.
	f.patience = u.cfg.Silence << min(u.silent, 4)
	return f
}

// run follows until an error, or until ctx ends.
func (f *follower) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	// A member that has lost its leader ends the stream instead of falling silent.
	stream, err := pb.NewWatchClient(f.c.client.ActiveConnection()).Watch(
		clientv3.WithRequireLeader(ctx), grpc.MaxCallRecvMsgSize(f.responseLimit()))
	if err != nil {
		return fmt.Errorf("watch: %w", f.u.translate(err))
	}
	f.stream = stream
	defer f.u.metrics.watchers.Set(0)
	defer f.u.metrics.heldBytes.Set(0)
	group.Go(func() error { return f.receive(ctx) })
	group.Go(func() error { return f.poll.run(ctx) })
	group.Go(func() error { return f.leases.run(ctx) })
	group.Go(func() error { return f.guard(ctx) })
	group.Go(func() error { return f.follow(ctx) })
	return group.Wait()
}

// responseLimit returns how big a response may be. One that is bigger is refused
// before there is memory for it, and asked for in fragments next time. Even so
// etcd may send one whole now and then, when it has it ready before it has noted
// that fragments are wanted: that is refused too. A fragment holds one event at
// least, however big that is, so every further refusal makes the limit four times
// as high.
func (f *follower) responseLimit() int {
	limit := max(f.u.cfg.HeldBytes, minResponseBytes)
	for refused := f.u.tooBig; refused > 1 && limit < maxResponseBytes; refused-- {
		limit *= 4
	}
	return int(min(limit, maxResponseBytes))
}

// receive hands on what the stream brings, one response at a time: when follow
// does not take it, the stream stops, and etcd's watchers with it.
func (f *follower) receive(ctx context.Context) error {
	for {
		f.waiting.Store(time.Now().UnixNano())
		resp, err := f.stream.Recv()
		f.waiting.Store(0)
		if err != nil {
			return fmt.Errorf("watch: %w", f.u.ended(ctx, err))
		}
		select {
		case f.responses <- resp:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// guard ends the connection when events that etcd has do not come. A poll that
// is not answered ends it too, see poller.
func (f *follower) guard(ctx context.Context) error {
	ticker := time.NewTicker(f.u.cfg.Silence / 10)
	defer ticker.Stop()
	idle := time.Now() // when nothing was owed for the last time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		since := f.waiting.Load()
		head := f.poll.head.Load()
		if since == 0 || head < f.expected.Load() {
			idle = time.Now()
			continue
		}
		if began := time.Unix(0, since); began.After(idle) {
			idle = began
		}
		if time.Since(idle) > f.patience {
			return &silentError{head: head, silence: f.patience}
		}
	}
}

// follow decides what to ask, and applies what comes.
func (f *follower) follow(ctx context.Context) error {
	if f.replica.Applied() <= 1 {
		f.matched = true // revision 1 is an empty etcd: there is nothing to compare
	}
	for {
		f.tiling.heard(f.poll.head.Load())
		if err := f.ask(ctx); err != nil {
			return err
		}
		ready := f.tiling.ready()
		held := f.tiling.held()
		f.u.metrics.heldBytes.Set(float64(held))
		f.u.metrics.watchers.Set(float64(len(f.tiling.byID)))
		if !ready {
			f.tiling.shrink() // no-op within the budget
		}
		if !ready || held < f.u.cfg.HeldBytes { // else first make room
			if err := f.next(ctx, !ready); err != nil {
				return err
			}
		}
		if err := f.apply(ctx); err != nil {
			return err
		}
	}
}

// next takes one response or one poll, if there is one; else it waits for one
// if wait is set.
func (f *follower) next(ctx context.Context, wait bool) error {
	if wait {
		select {
		case resp := <-f.responses:
			return f.response(resp)
		case <-f.poll.wake:
			return nil // follow looks at what the poll has left
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case resp := <-f.responses:
		return f.response(resp)
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

// ask sends what the tiling wants, and asks for the compaction revision if a
// poll has found that it has moved.
func (f *follower) ask(ctx context.Context) error {
	for _, r := range f.tiling.plan() {
		if err := f.send(ctx, r); err != nil {
			return err
		}
	}
	if f.tiling.behind > f.behind {
		f.behind = f.tiling.behind
		f.u.metrics.fellBehind.Inc()
	}
	if f.probe != 0 || !f.poll.compacted() {
		return nil
	}
	// A watcher that begins at a compacted revision is cancelled with the
	// compaction revision. One that does not makes etcd read its history,
	// which is why a poll has looked first.
	f.probe = f.tiling.newID()
	return f.send(ctx, request{id: f.probe, create: true, start: max(f.poll.floor.Load(), 1)})
}

func (f *follower) send(ctx context.Context, r request) error {
	var req pb.WatchRequest
	if r.create {
		req.RequestUnion = &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key:           []byte{0},
			RangeEnd:      []byte{0}, // the whole keyspace
			StartRevision: r.start,
			WatchId:       r.id,
			Fragment:      r.fragment,
		}}
	} else {
		req.RequestUnion = &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: r.id}}
	}
	if err := f.stream.Send(&req); err != nil {
		if errors.Is(err, io.EOF) {
			return f.drain(ctx)
		}
		return fmt.Errorf("watch: send: %w", err)
	}
	return nil
}

// drain returns why the stream has ended. It is the receiver that learns it, but
// not before it has handed on what it may be holding.
func (f *follower) drain(ctx context.Context) error {
	for {
		select {
		case <-f.responses:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// response takes one response of the stream.
func (f *follower) response(resp *pb.WatchResponse) error {
	if err := f.c.same(resp.Header); err != nil {
		return err
	}
	var err error
	switch {
	case resp.WatchId == f.probe && resp.CompactRevision != 0:
		f.probed(resp.CompactRevision)
	case resp.WatchId < 0 && resp.Canceled: // no watcher was created
		err = &canceledError{reason: resp.CancelReason}
	default:
		err = f.tiling.receive(resp)
	}
	if canceled, ok := errors.AsType[*canceledError](err); ok {
		if known := canceled.Unwrap(); known != nil {
			return fmt.Errorf("watch cancelled: %w", f.u.translate(known))
		}
	}
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	f.expected.Store(max(f.tiling.next(), f.replica.Applied()+1))
	f.poll.hear(resp.Header.GetRevision())
	return nil
}

// probed takes the answer to the question for the compaction revision.
func (f *follower) probed(rev int64) {
	f.probe = 0
	f.u.compacted = max(f.u.compacted, rev)
	f.poll.learned(f.u.compacted)
	f.replica.Compact(f.u.compacted)
}

// apply applies revisions that are whole, up to a slice of them.
func (f *follower) apply(ctx context.Context) error {
	for n := int64(0); n < sliceBytes; {
		events := f.tiling.take()
		if events == nil {
			return nil
		}
		f.leases.attached(events)
		batch, err := f.encode.batch(events)
		if err != nil {
			return err
		}
		clear(events) // the tile no longer keeps them in memory
		if !f.matched {
			again, err := f.match(ctx, batch)
			if err != nil {
				return err
			}
			f.matched = true
			if again {
				continue // the replica has it
			}
		}
		if want := f.replica.Applied() + 1; batch.Rev != want {
			return fmt.Errorf("watch: %w", &gapError{want: want, got: batch.Rev})
		}
		if err := f.replica.Apply(batch); err != nil {
			return fmt.Errorf("apply revision %d: %w", batch.Rev, err)
		}
		f.u.gap, f.u.silent, f.u.tooBig = 0, 0, 0
		f.u.metrics.revisions.Inc()
		f.u.metrics.records.Add(float64(len(batch.Records)))
		f.u.cfg.Reporter.Applied(batch.Rev)
		n += batch.Bytes()
	}
	return nil
}
