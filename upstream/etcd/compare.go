package etcd

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
)

// Limits of what is compared when a connection is made.
const (
	compareRevisions = heliograph.DigestBlock
	compareBytes     = 16 << 20
)

// comparison compares the last revisions of the replica with etcd's, record by
// record. Of each revision it remembers a hash, which is seeded anew each time.
type comparison struct {
	seed    maphash.Seed
	from    int64 // first revision
	ours    []revisionHash
	records int64
	bytes   int64

	rev    int64        // of which events are coming; from-1 at first
	theirs revisionHash // of those
	buf    []byte
}

// revisionHash is what is remembered of one revision.
type revisionHash struct {
	records int
	bytes   int64
	sum     uint64
}

// add counts a record. The order of a revision's records is in their keys.
func (h *revisionHash) add(seed maphash.Seed, key, value []byte) {
	h.records++
	h.bytes += int64(len(key) + len(value))
	h.sum += maphash.Bytes(seed, key)*31 ^ maphash.Bytes(seed, value)
}

// compare re-reads from etcd what the replica holds as its last revisions, before
// anything is applied on top of them: two etcd clusters can have the same id, and
// both be past the same revision, and be different all the same. What etcd has
// compacted cannot be compared; a snapshot that replaces the replica is compared
// with it by the store.
func (u *Upstream) compare(ctx context.Context, c *connection) error {
	h, ok := u.cfg.Replica.(history)
	applied := u.cfg.Replica.Applied()
	if !ok || applied <= 1 {
		return nil
	}
	from := max(applied-compareRevisions+1, u.cfg.Replica.Compacted()+1, 2)
	if f, ok := h.(interface{ Floor() int64 }); ok {
		from = max(from, f.Floor()+1)
	}
	for from <= applied {
		cmp, err := newComparison(h, from, applied)
		if errors.Is(err, heliograph.ErrCompacted) {
			return nil // compacted just now, or a hole: the replica is at its floor
		}
		if err != nil {
			return fmt.Errorf("read revision %d back: %w", from, err)
		}
		from, err = u.reread(ctx, c, cmp, applied)
		if err != nil {
			return err
		}
	}
	return nil
}

// newComparison reads the replica's revisions from from to applied, or the last of
// them that make up compareBytes.
func newComparison(h history, from, applied int64) (*comparison, error) {
	cmp := &comparison{seed: maphash.MakeSeed(), from: from, ours: make([]revisionHash, applied-from+1)}
	_, err := h.History(from, math.MaxInt, func(key, value []byte) error {
		rk, err := heliograph.ParseRevisionKey(key)
		if err != nil || rk.Main > applied || len(value) == 0 {
			return err // an empty value: see follower.ours
		}
		cmp.ours[rk.Main-from].add(cmp.seed, key, value)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := len(cmp.ours) - 1; i >= 0; i-- {
		if cmp.bytes > compareBytes {
			cmp.from, cmp.ours = from+int64(i)+1, cmp.ours[i+1:]
			break
		}
		cmp.bytes += cmp.ours[i].bytes
		cmp.records += int64(cmp.ours[i].records)
	}
	cmp.rev = cmp.from - 1
	return cmp, nil
}

// reread watches etcd from the first revision of cmp on. It returns where to go on
// if etcd is compacted there, applied+1 when all has been compared.
func (u *Upstream) reread(ctx context.Context, c *connection, cmp *comparison, applied int64) (next int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := u.cfg.Silence << min(u.silent, 4) // see follower.patience
	silence := time.AfterFunc(patience, func() { cancel(&silentError{head: c.head, silence: patience}) })
	defer silence.Stop()
	stream, err := pb.NewWatchClient(c.client.ActiveConnection()).Watch(
		clientv3.WithRequireLeader(ctx), grpc.MaxCallRecvMsgSize(maxResponseBytes))
	if err != nil {
		return 0, fmt.Errorf("compare: %w", u.ended(ctx, err))
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: cmp.from, WatchId: 1,
		Fragment: cmp.bytes > bigEvent*cmp.records,
	}}})
	for err == nil {
		var resp *pb.WatchResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		silence.Reset(patience)
		if err := c.same(resp.Header); err != nil {
			return 0, err
		}
		switch {
		case resp.CompactRevision != 0:
			return resp.CompactRevision + 1, nil
		case resp.Canceled:
			err := &canceledError{reason: resp.CancelReason}
			if known := err.Unwrap(); known != nil {
				return 0, fmt.Errorf("compare: %w", u.translate(known))
			}
			return 0, fmt.Errorf("compare: %w", err)
		}
		differs, done := cmp.take(resp, applied)
		if differs > 0 {
			return u.differs(ctx, c, differs)
		}
		if done {
			u.metrics.compared.Add(float64(len(cmp.ours)))
			return applied + 1, nil
		}
	}
	return 0, fmt.Errorf("compare: %w", u.ended(ctx, err))
}

// differs judges a revision that is another in etcd. At its compaction revision
// etcd may have fewer records than there were.
func (u *Upstream) differs(ctx context.Context, c *connection, rev int64) (next int64, err error) {
	compacted, err := c.compactedTo(ctx, rev)
	if err != nil {
		return 0, err
	}
	if compacted {
		return rev + 1, nil
	}
	return 0, &heliograph.DivergedError{Rev: rev, Why: "etcd does not hold what the replica holds there: " +
		"etcd was created anew or restored from a backup, or the replica was written to; resync to follow etcd as it is now"}
}

// take compares what a response brings. It returns the first revision that
// differs, 0 if none does, and whether all has come.
func (cmp *comparison) take(resp *pb.WatchResponse, applied int64) (differs int64, done bool) {
	for _, ev := range resp.Events {
		rev := ev.Kv.GetModRevision()
		if rev != cmp.rev {
			if differs := cmp.end(min(rev, applied+1)); differs > 0 {
				return differs, false
			}
			if rev > applied {
				return 0, true
			}
			if rev < cmp.from {
				return cmp.from, false // events out of order
			}
			cmp.rev, cmp.theirs = rev, revisionHash{}
		}
		cmp.add(ev)
	}
	if resp.Fragment || cmp.rev < applied {
		return 0, false
	}
	differs = cmp.end(applied + 1)
	return differs, differs == 0
}

// end compares the revision of which all events have come, and requires that none
// lies between it and next.
func (cmp *comparison) end(next int64) (differs int64) {
	if cmp.rev >= cmp.from && cmp.theirs != cmp.ours[cmp.rev-cmp.from] {
		return cmp.rev
	}
	for rev := cmp.rev + 1; rev < next; rev++ {
		if cmp.ours[rev-cmp.from].records > 0 {
			return rev
		}
	}
	return 0
}

func (cmp *comparison) add(ev *mvccpb.Event) {
	buf, r, err := appendRecord(cmp.buf[:0], cmp.rev, int64(cmp.theirs.records), ev)
	if err != nil {
		r = heliograph.Record{} // no record of ours is empty: it differs
	}
	cmp.theirs.add(cmp.seed, r.Key, r.Value)
	cmp.buf = buf
}
