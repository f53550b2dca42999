package source

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

const (
	// chunkBytes is what a snapshot's chunk holds, uncompressed.
	chunkBytes = 256 << 10
	// writeBytes is what has to be taken within one deadline.
	writeBytes = 64 << 10
)

// bulk is a unidirectional stream to a mirror.
type bulk struct {
	stream *quic.SendStream
	within func(time.Duration)
	frames prometheus.Counter
	bytes  prometheus.Counter
}

// openBulk opens a stream for frames of one kind. It waits until the mirror
// allows one more.
func (m *mirror) openBulk(ctx context.Context, kind string) (*bulk, error) {
	wait, cancel := context.WithTimeout(ctx, m.srv.cfg.Stall)
	defer cancel()
	stream, err := m.conn.OpenUniStreamSync(wait)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case wait.Err() != nil:
		return nil, end(heliograph.CodeTimeout, "the mirror allowed no stream for %v", m.srv.cfg.Stall)
	default:
		return nil, err
	}
	return &bulk{
		stream: stream,
		within: m.brake.guard(stream.SetWriteDeadline),
		frames: m.srv.metrics.sentFrames.WithLabelValues(kind),
		bytes:  m.srv.metrics.sentBytes.WithLabelValues(kind),
	}, nil
}

// write sends one frame. It blocks while the mirror does not read, but no longer
// than patience without any of its bytes being taken. p is not retained.
func (b *bulk) write(ctx context.Context, p []byte, patience time.Duration) error {
	for rest := p; len(rest) > 0; {
		b.within(patience)
		n, err := b.stream.Write(rest[:min(len(rest), writeBytes)])
		rest = rest[n:]
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !isTimeout(err):
			return err
		case err != nil && n == 0:
			return end(heliograph.CodeTimeout, "the mirror took no bytes for %v", patience)
		}
	}
	b.frames.Inc()
	b.bytes.Add(float64(len(p)))
	return nil
}

// sendSnapshot sends a whole snapshot on a stream of its own.
func (m *mirror) sendSnapshot(ctx context.Context, snap heliograph.Snapshot) error {
	b, err := m.openBulk(ctx, "snapshot")
	if err != nil {
		return err
	}
	var pack wire.Compressor
	data, buf := make([]byte, chunkBytes), []byte(nil)
	for at := int64(0); at < snap.Size(); {
		if err := m.checkGeneration(); err != nil {
			return err
		}
		n := int(min(snap.Size()-at, chunkBytes))
		if read, err := snap.ReadAt(data[:n], at); read < n {
			return m.unreadable("snapshot", err)
		}
		buf = wire.AppendChunk(buf[:0], at, data[:n], &pack)
		if err := b.write(ctx, buf, m.srv.cfg.Stall); err != nil {
			return err
		}
		at += int64(n)
	}
	last := wire.SnapshotEnd{Rev: snap.Rev(), Size: snap.Size(), SHA256: snap.SHA256()}
	if err := b.write(ctx, last.AppendFrame(nil), m.srv.cfg.Stall); err != nil {
		return err
	}
	m.srv.metrics.snapshots.Inc()
	return b.stream.Close()
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
