package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/heliograph/heliograph"
)

// Of the stream of a snapshot:
//
//	database file, in pages of at least 512 bytes │ SHA-256 of it (32 bytes)
const (
	sumBytes  = 32
	pageBytes = 512
)

// bootstrap replaces what the replica holds by a snapshot of etcd.
func (u *Upstream) bootstrap(ctx context.Context, c *connection) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u.cfg.Reporter.Bootstrapping(0, 0)
	silence := time.AfterFunc(u.cfg.SnapshotSilence, func() {
		cancel(fmt.Errorf("nothing came of the snapshot for %s", u.cfg.SnapshotSilence))
	})
	defer silence.Stop()
	stream, err := pb.NewMaintenanceClient(c.client.ActiveConnection()).Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		return u.ended(ctx, err)
	}
	first, err := stream.Recv()
	if err != nil {
		return u.ended(ctx, err)
	}
	total := int64(first.RemainingBytes) + int64(len(first.Blob))
	if total <= 0 || first.RemainingBytes > 1<<62 {
		return fmt.Errorf("etcd announces a snapshot of %d bytes", first.RemainingBytes)
	}
	receiver, err := u.cfg.Replica.ReceiveSnapshot(total)
	if err != nil {
		return err
	}
	defer receiver.Abort() //nolint:errcheck // after Commit it does nothing; before, the error that leads here is the one to tell
	body := body{receiver: receiver, total: total}
	for resp := first; ; {
		silence.Stop() // the disk may take its time
		if err := body.write(resp.Blob); err != nil {
			return err
		}
		u.metrics.snapshotBytes.Add(float64(len(resp.Blob)))
		u.cfg.Reporter.Bootstrapping(body.done, total)
		silence.Reset(u.cfg.SnapshotSilence)
		resp, err = stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.ended(ctx, err)
		}
	}
	if !silence.Stop() {
		return context.Cause(ctx) // it has just fired
	}
	sum, err := body.sum()
	if err != nil {
		return err
	}
	rev, err := receiver.Commit(total, sum, heliograph.Origin{
		Cluster: u.cfg.Cluster, Database: u.cfg.Database, EtcdID: c.id,
	})
	if err != nil {
		return fmt.Errorf("install the snapshot: %w", err)
	}
	u.metrics.snapshots.Inc()
	u.cfg.Reporter.Applied(rev)
	u.cfg.Log.Info("snapshot installed", "cluster", u.cfg.Cluster, "peer", c.endpoint, "rev", rev)
	return nil
}

// ended says why a stream has ended: for our own reason, or for etcd's.
func (u *Upstream) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return u.translate(err)
}

// body splits the stream into the file and its sum. What may be the sum is held
// back: the last 32 bytes so far.
type body struct {
	receiver heliograph.SnapshotReceiver
	total    int64 // of the file, as announced
	done     int64 // bytes of the file that were handed on
	tail     []byte
}

func (b *body) write(p []byte) error {
	if b.done+int64(len(b.tail)+len(p)) > b.total+sumBytes {
		return fmt.Errorf("the snapshot has more than the %d bytes announced", b.total)
	}
	// Hand on from the tail what p pushes out of the last 32 bytes, then from p.
	out := max(len(b.tail)+len(p)-sumBytes, 0)
	fromTail := min(out, len(b.tail))
	if err := b.hand(b.tail[:fromTail]); err != nil {
		return err
	}
	if err := b.hand(p[:out-fromTail]); err != nil {
		return err
	}
	b.tail = append(b.tail[:0:0], b.tail[fromTail:]...)
	b.tail = append(b.tail, p[out-fromTail:]...)
	return nil
}

func (b *body) hand(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := b.receiver.WriteChunk(b.done, p); err != nil {
		return fmt.Errorf("write the snapshot at %d: %w", b.done, err)
	}
	b.done += int64(len(p))
	return nil
}

// sum returns the SHA-256 that came with the file, if the stream was whole.
func (b *body) sum() (sum [sumBytes]byte, err error) {
	if b.done != b.total || len(b.tail) != sumBytes {
		return sum, fmt.Errorf("the snapshot ended at byte %d of %d", b.done+int64(len(b.tail)), b.total+sumBytes)
	}
	if b.done%pageBytes != 0 {
		return sum, fmt.Errorf("the snapshot has %d bytes, which is no whole number of pages", b.done)
	}
	return [sumBytes]byte(b.tail), nil
}
