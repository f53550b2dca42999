package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/heliograph/heliograph"
)

const (
	// askAtOnce is how many TTLs are asked for at once, askEvery the pause
	// between two chunks of askChunk: a mirror must not be felt by etcd.
	askAtOnce = 16
	askChunk  = 256
	askEvery  = 100 * time.Millisecond
	// fewLeases is how many leases that records name are asked for one by one.
	// When there are more, such as in an old history, most have long gone, and
	// a list tells which.
	fewLeases = 64
	// listAgain is the pace of lists that records make necessary.
	listAgain = time.Second
	// askAnew is how many known leases each list's round asks for again, in
	// turn: an id can be revoked and granted with another TTL between two lists.
	askAnew = 32
	// maxListBytes has room for heliograph.MaxLeases ids.
	maxListBytes = 32 << 20
)

// leaseReader is what a replica offers that remembers leases. One that does not
// is told all of them on every connection.
type leaseReader interface {
	// LeasesSince returns all leases for a seq of 0.
	LeasesSince(seq uint64) (heliograph.LeaseChange, uint64)
}

// leases learns etcd's leases over one connection: etcd has no watch for them. A
// list at an interval says which there are; a lease that a record names and that
// is not known is asked for at once. A failure is logged and ends nothing.
//
// A lease that was known before a list was asked for, and is not in it, has gone:
// a member that has answered a linearizable read has applied the grant.
type leases struct {
	u      *Upstream
	c      *connection
	client pb.LeaseClient
	wake   chan struct{} // capacity 1: there are named ones

	mu    sync.Mutex
	known map[int64]int64    // id to TTL, as the replica has been told; changed by run alone
	named map[int64]struct{} // by records, and not known

	turn []int64 // of the known ones, those that are still to be asked for again
}

func newLeases(u *Upstream, c *connection) *leases {
	l := &leases{
		u: u, c: c, client: pb.NewLeaseClient(c.client.ActiveConnection()),
		wake: make(chan struct{}, 1), known: make(map[int64]int64), named: make(map[int64]struct{}),
	}
	if r, ok := u.cfg.Replica.(leaseReader); ok {
		all, _ := r.LeasesSince(0)
		for _, p := range all.Put {
			l.known[p.ID] = p.TTL
		}
	}
	return l
}

// attached notes the leases that the events of a revision name.
func (l *leases) attached(events []*mvccpb.Event) {
	for _, ev := range events {
		id := ev.Kv.Lease
		if id == 0 {
			continue
		}
		l.mu.Lock()
		if _, known := l.known[id]; !known && len(l.named) < heliograph.MaxLeases {
			l.named[id] = struct{}{}
			select {
			case l.wake <- struct{}{}:
			default:
			}
		}
		l.mu.Unlock()
	}
}

// run learns until ctx ends.
func (l *leases) run(ctx context.Context) error {
	next := time.NewTimer(0)
	defer next.Stop()
	var listed time.Time
	for {
		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-next.C:
			listed = time.Now()
			err = l.list(ctx)
			next.Reset(l.u.cfg.LearnInterval)
		case <-l.wake:
			ids, all := l.takeNamed()
			if !all {
				next.Reset(max(0, listAgain-time.Since(listed)))
				continue
			}
			if len(ids) == 0 {
				continue // a list was quicker
			}
			err = l.ask(ctx, ids)
		}
		l.u.learned(ctx, &l.u.leaseTrouble, "leases", err)
	}
}

// takeNamed returns the leases that records have named since the last call; all
// is false if there are too many to ask for each.
func (l *leases) takeNamed() (ids []int64, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all = len(l.named) <= fewLeases
	for id := range l.named {
		if _, known := l.known[id]; all && !known {
			ids = append(ids, id)
		}
	}
	l.named = make(map[int64]struct{})
	return ids, all
}

// list asks which leases there are, and for the TTLs of those that are new.
func (l *leases) list(ctx context.Context) error {
	// What etcd answers from its memory may be old; a linearizable read first
	// makes it at least as new as what is known here.
	if _, err := l.c.revision(ctx, 0); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, l.u.cfg.Silence)
	defer cancel()
	resp, err := l.client.LeaseLeases(call, &pb.LeaseLeasesRequest{}, grpc.MaxCallRecvMsgSize(maxListBytes))
	if err != nil {
		return fmt.Errorf("list: %w", l.u.translate(err))
	}
	if err := l.c.same(resp.Header); err != nil {
		return err
	}
	if len(resp.Leases) > heliograph.MaxLeases {
		return fmt.Errorf("list: etcd has %d leases, more than the %d that a replica keeps", len(resp.Leases), heliograph.MaxLeases)
	}
	there := make(map[int64]struct{}, len(resp.Leases))
	var ask []int64
	for _, s := range resp.Leases {
		there[s.ID] = struct{}{}
		if _, known := l.known[s.ID]; !known {
			ask = append(ask, s.ID)
		}
	}
	var gone []int64
	for id := range l.known {
		if _, ok := there[id]; !ok {
			gone = append(gone, id)
		}
	}
	if err := l.tell(heliograph.LeaseChange{Removed: gone}); err != nil {
		return err
	}
	return l.ask(ctx, append(ask, l.again()...))
}

// again returns the known leases whose turn it is to be asked for once more.
func (l *leases) again() []int64 {
	if len(l.turn) == 0 {
		for id := range l.known {
			l.turn = append(l.turn, id)
		}
	}
	n := min(len(l.turn), askAnew)
	ids := l.turn[:n:n]
	l.turn = l.turn[n:]
	return ids
}

// ask asks for the granted TTLs of leases and tells the replica. Those that have
// gone meanwhile are left to the next list.
func (l *leases) ask(ctx context.Context, ids []int64) error {
	for len(ids) > 0 {
		n := min(len(ids), askChunk)
		put, err := l.grants(ctx, ids[:n])
		if err = errors.Join(l.tell(heliograph.LeaseChange{Put: put}), err); err != nil {
			return err
		}
		if ids = ids[n:]; len(ids) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(askEvery):
		}
	}
	return nil
}

// grants returns those of the leases that exist; with an error, some of them.
func (l *leases) grants(ctx context.Context, ids []int64) ([]heliograph.Lease, error) {
	got := make([]heliograph.Lease, len(ids))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askAtOnce)
	for i, id := range ids {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, l.u.cfg.Silence)
			defer cancel()
			resp, err := l.client.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id})
			if err != nil {
				return fmt.Errorf("ask for a TTL: %w", l.u.translate(err))
			}
			if resp.GrantedTTL > 0 { // else it has gone
				got[i] = heliograph.Lease{ID: id, TTL: min(resp.GrantedTTL, heliograph.MaxLeaseTTL)}
			}
			return nil
		})
	}
	err := group.Wait()
	put := got[:0]
	for _, p := range got {
		if p.TTL > 0 {
			put = append(put, p)
		}
	}
	return put, err
}

// tell tells the replica what it does not know yet, and remembers it.
func (l *leases) tell(c heliograph.LeaseChange) error {
	news := heliograph.LeaseChange{Removed: c.Removed}
	for _, p := range c.Put {
		if l.known[p.ID] != p.TTL {
			news.Put = append(news.Put, p)
		}
	}
	if news.Empty() {
		return nil
	}
	if err := l.u.cfg.Replica.ApplyLeases(news); err != nil {
		return fmt.Errorf("tell the replica: %w", err)
	}
	l.u.metrics.leases.Add(float64(len(news.Put) + len(news.Removed)))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range news.Put {
		l.known[p.ID] = p.TTL
	}
	for _, id := range news.Removed {
		delete(l.known, id)
	}
	return nil
}
