package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// bulkBufferBytes saves a call per header; large payloads bypass it.
const bulkBufferBytes = 64 << 10

// partingGrace is how long the end of a bulk stream waits for the control
// stream to say why: they are not ordered against each other.
const partingGrace = 500 * time.Millisecond

// receive brings the replica what the source sends: a snapshot if one was
// announced, then entries for as long as the session lasts.
func (s *session) receive(ctx context.Context) error {
	err := s.receiveBulk(ctx)
	if _, remote := errors.AsType[*quic.StreamError](err); remote || errors.Is(err, errBulkEnded) {
		sleep(ctx, partingGrace)
	}
	return err
}

func (s *session) receiveBulk(ctx context.Context) error {
	if s.plan.snapshot {
		if err := s.receiveSnapshot(ctx); err != nil {
			return fmt.Errorf("snapshot at revision %d: %w", s.plan.snapshotRev, err)
		}
	} else if err := s.adopt(); err != nil {
		return err
	}
	if s.cfg.Joined != nil {
		s.cfg.Joined()
	}
	s.facts.begin()
	s.acks.start(s.plan.from - 1)
	wake(s.outgoing)
	return s.receiveEntries(ctx)
}

// adopter is what a replica offers that can go on with the history of a promoted
// cluster.
type adopter interface {
	// Adopt makes what the replica holds part of that history, durably. A history
	// that it is no part of is a *heliograph.DivergedError.
	Adopt(to heliograph.Lineage) error
}

// adopt tells the replica, before it is brought anything, that what comes is of
// another origin, if it is. A snapshot tells it itself.
func (s *session) adopt() error {
	forks := s.plan.lineage.Forks
	if len(forks) == 0 {
		return nil
	}
	r, ok := s.cfg.Replica.(adopter)
	if !ok {
		return &heliograph.DivergedError{Why: fmt.Sprintf("the source has the history of %s, and this replica cannot leave that of %s", s.plan.lineage.Origin, forks[0].Origin)}
	}
	s.applying.Lock()
	err := r.Adopt(s.plan.lineage)
	s.applying.Unlock()
	if err != nil {
		return local("adopt the source's history", err)
	}
	s.cfg.Log.Info("history of a promoted cluster adopted", "peer", s.peer, "rev", s.startRev,
		"was", forks[0].Origin, "origin", s.plan.lineage.Origin.String(), "fork", heliograph.Left(forks).Revision)
	return nil
}

// errBulkEnded says that the source ended a bulk stream where more had to come.
var errBulkEnded = errors.New("the source ended its stream")

// bulk reads one bulk stream, and tells the vigil when it waits.
type bulk struct {
	stream   *quic.ReceiveStream
	vigil    *vigil
	snapshot bool
	bytes    prometheus.Counter
}

func (b *bulk) Read(p []byte) (int, error) {
	b.vigil.await(time.Now(), b.snapshot)
	n, err := b.stream.Read(p)
	b.vigil.received(time.Now(), n)
	b.bytes.Add(float64(n))
	return n, err
}

// accept returns the frames of the source's next bulk stream.
func (s *session) accept(ctx context.Context, snapshot bool) (*wire.Reader, error) {
	s.vigil.await(time.Now(), snapshot)
	stream, err := s.conn.AcceptUniStream(ctx)
	s.vigil.received(time.Now(), 0)
	if err != nil {
		return nil, err
	}
	kind := "entries"
	if snapshot {
		kind = "snapshot"
	}
	b := &bulk{stream, s.vigil, snapshot, s.link.metrics.bytes.WithLabelValues(kind)}
	return wire.NewReader(bufio.NewReaderSize(b, bulkBufferBytes), wire.Bulk), nil
}

// nextBulk reads a frame; the stream must not end here.
func nextBulk(frames *wire.Reader) (wire.Type, []byte, error) {
	kind, payload, err := frames.Next()
	switch {
	case errors.Is(err, io.EOF):
		return kind, nil, errBulkEnded
	case errors.Is(err, io.ErrUnexpectedEOF):
		return kind, nil, fmt.Errorf("%w within a frame", errBulkEnded)
	case err != nil:
		return kind, nil, brokenFrame(kind, err)
	}
	return kind, payload, nil
}

func (s *session) receiveSnapshot(ctx context.Context) (err error) {
	frames, err := s.accept(ctx, true)
	if err != nil {
		return err
	}
	s.applying.Lock()
	sink, err := s.cfg.Replica.ReceiveSnapshot(s.plan.snapshotBytes)
	s.applying.Unlock()
	if err != nil {
		return local("begin", err)
	}
	defer func() {
		if err == nil {
			s.link.metrics.snapshots.WithLabelValues("installed").Inc()
			return
		}
		s.link.metrics.snapshots.WithLabelValues("aborted").Inc()
		if abortErr := sink.Abort(); abortErr != nil {
			s.cfg.Log.Error("snapshot not cleaned up", "peer", s.peer, "err", abortErr)
		}
	}()
	end, err := s.receiveChunks(frames, sink)
	if err != nil {
		return err
	}
	// The stream ends here; what follows would belong to nothing.
	switch kind, _, err := frames.Next(); {
	case err == nil:
		return broken("a %s frame behind the snapshot", kind)
	case !errors.Is(err, io.EOF):
		return brokenFrame(kind, err)
	}
	// A commit that fails may have replaced the contents or not: either way
	// the next hello says what the replica holds.
	s.applying.Lock()
	rev, err := sink.Commit(end.Size, end.SHA256, s.plan.lineage.Origin)
	s.applying.Unlock()
	if err != nil {
		return local("commit", err)
	}
	s.applied.Store(rev)
	s.cfg.Reporter.Applied(rev)
	if rev != s.plan.snapshotRev {
		return broken("the snapshot holds revision %d", rev)
	}
	s.cfg.Log.Info("snapshot received", "peer", s.peer, "rev", rev, "bytes", end.Size)
	return nil
}

// receiveChunks writes the chunks of a snapshot up to its end to sink.
func (s *session) receiveChunks(frames *wire.Reader, sink heliograph.SnapshotReceiver) (wire.SnapshotEnd, error) {
	var unpack wire.Decompressor
	var done int64
	total := s.plan.snapshotBytes
	s.cfg.Reporter.Bootstrapping(0, total)
	for {
		kind, payload, err := nextBulk(frames)
		if err != nil {
			return wire.SnapshotEnd{}, err
		}
		switch kind {
		case wire.TypeChunk:
			c, err := wire.DecodeChunk(payload, &unpack)
			if err != nil {
				return wire.SnapshotEnd{}, brokenPayload(kind, err)
			}
			if c.Offset != done || total > 0 && int64(len(c.Data)) > total-done {
				return wire.SnapshotEnd{}, broken("%d bytes at offset %d after %d of %d bytes", len(c.Data), c.Offset, done, total)
			}
			if err := sink.WriteChunk(c.Offset, c.Data); err != nil {
				return wire.SnapshotEnd{}, local("write", err)
			}
			done += int64(len(c.Data))
			s.cfg.Reporter.Bootstrapping(done, total)
		case wire.TypeSnapshotEnd:
			end, err := wire.DecodeSnapshotEnd(payload)
			if err != nil {
				return wire.SnapshotEnd{}, brokenPayload(kind, err)
			}
			if end.Rev != s.plan.snapshotRev || end.Size != done || total > 0 && done != total {
				return wire.SnapshotEnd{}, broken("the end of a snapshot of %d bytes at revision %d after %d of %d bytes", end.Size, end.Rev, done, total)
			}
			return end, nil
		default:
			return wire.SnapshotEnd{}, broken("a %s frame within the snapshot", kind)
		}
	}
}

// receiveEntries applies what comes until it ends. The next frame is read when
// all of the last has been applied.
func (s *session) receiveEntries(ctx context.Context) error {
	frames, err := s.accept(ctx, false)
	if err != nil {
		return err
	}
	var unpack wire.Decompressor
	assembler := wire.NewAssembler(s.plan.from)
	for {
		kind, payload, err := nextBulk(frames)
		if err != nil {
			return err
		}
		if kind != wire.TypeEntries {
			return broken("a %s frame among the entries", kind)
		}
		entries, err := wire.DecodeEntries(payload, &unpack)
		if err != nil {
			return brokenPayload(kind, err)
		}
		s.vigil.entries(max(entries.Head, entries.Last))
		s.cfg.Reporter.Heard(s.vigil.horizon())
		if err := assembler.Add(entries, s.apply); err != nil {
			return brokenFrame(kind, err)
		}
		if s.acks.sync {
			if _, err := s.cfg.Replica.Commit(); err != nil {
				return local("commit", err)
			}
			wake(s.outgoing)
		}
	}
}

func (s *session) apply(b heliograph.Batch) error {
	s.applying.Lock()
	err := s.cfg.Replica.Apply(b)
	s.applying.Unlock()
	if err != nil {
		return local(fmt.Sprintf("apply revision %d", b.Rev), err)
	}
	s.applied.Store(b.Rev)
	s.link.metrics.applied.Inc()
	s.cfg.Reporter.Applied(b.Rev)
	if !s.acks.sync {
		wake(s.outgoing)
	}
	return nil
}
