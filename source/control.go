package source

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

const (
	// controlQueue bounds the control frames that wait for the writer. When it
	// is full, whoever has one more waits too.
	controlQueue = 64
	// controlWait bounds the writing of one control frame.
	controlWait = 5 * time.Second
	// controlUrgency is above that of the bulk streams, which is 3.
	controlUrgency = 0
)

// control is the first stream of a mirror.
type control struct {
	stream     *quic.Stream
	frames     *wire.Reader
	readWithin func(time.Duration)
	queue      chan wire.Message
	broken     bool // a frame was not written whole; of the writer, then of part
}

func newControl(stream *quic.Stream, frames *wire.Reader, b *brake) *control {
	return &control{
		stream:     stream,
		frames:     frames,
		readWithin: b.guard(stream.SetReadDeadline),
		queue:      make(chan wire.Message, controlQueue),
	}
}

func newFrames(stream *quic.Stream) *wire.Reader {
	return wire.NewReader(bufio.NewReaderSize(stream, wire.HeaderBytes+wire.MaxControlPayload), wire.Control)
}

// post queues a message; it waits while the queue is full.
func (c *control) post(ctx context.Context, msg wire.Message) error {
	select {
	case c.queue <- msg:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write writes one frame. Nobody interrupts it: half a frame would make the
// goodbye unreadable.
func (c *control) write(msg wire.Message) error {
	_ = c.stream.SetWriteDeadline(time.Now().Add(controlWait))
	_, err := c.stream.Write(msg.AppendFrame(nil))
	if err != nil {
		c.broken = true
		if isTimeout(err) {
			return end(heliograph.CodeTimeout, "the mirror read no control frame for %v", controlWait)
		}
	}
	return err
}

// readControl takes the mirror's control frames until one is wrong or missing.
func (m *mirror) readControl(ctx context.Context) error {
	for {
		m.control.readWithin(m.srv.cfg.Silence)
		t, payload, err := m.control.frames.Next()
		if err == nil {
			m.heard.Store(int64(time.Since(m.since)))
			err = m.handle(ctx, t, payload)
		}
		if err != nil {
			return m.readEnding(ctx, t, err)
		}
	}
}

func (m *mirror) readEnding(ctx context.Context, t wire.Type, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case isTimeout(err):
		return end(heliograph.CodeTimeout, "nothing heard from the mirror for %v", m.srv.cfg.Silence)
	}
	return frameEnding(t, err)
}

// handle takes one frame. It does not block, so that silence is always the
// mirror's.
func (m *mirror) handle(ctx context.Context, t wire.Type, payload []byte) error {
	switch t {
	case wire.TypeHeartbeat:
		_, err := wire.DecodeHeartbeat(payload)
		return err
	case wire.TypeAck:
		a, err := wire.DecodeAck(payload)
		if err != nil {
			return err
		}
		return m.acknowledged(a)
	case wire.TypeReadIndex:
		r, err := wire.DecodeReadIndex(payload)
		if err != nil {
			return err
		}
		return m.reads.ask(m.srv.question(r))
	case wire.TypeVerify:
		v, err := wire.DecodeVerify(payload)
		if err != nil {
			return err
		}
		return m.verifies.ask(v.ID)
	case wire.TypeGoodbye:
		g, err := wire.DecodeGoodbye(payload)
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: %s: %s", errLeft, g.Code, g.Detail)
	}
	return fmt.Errorf("%w: %s", wire.ErrUnexpected, t)
}

// writeControl writes heartbeats, the first at once, what is queued, and what
// the mirror has not been told of leases.
func (m *mirror) writeControl(ctx context.Context) error {
	tick := time.NewTicker(m.srv.cfg.Heartbeat)
	defer tick.Stop()
	msg, err := m.beat()
	for err == nil {
		if err = m.control.write(msg); err != nil {
			return err
		}
		select {
		case msg = <-m.control.queue:
		case <-tick.C:
			msg, err = m.beat()
		case <-m.leases.due():
			msg = m.leases.next()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// beat returns a heartbeat, and looks whether the mirror may still be here and
// whether leases have changed.
func (m *mirror) beat() (wire.Message, error) {
	up := m.srv.cfg.Upstream()
	if err := m.recheck(up); err != nil {
		return nil, err
	}
	m.leases.look()
	h := m.srv.heartbeat(up)
	h.UnheardMS = (time.Since(m.since) - time.Duration(m.heard.Load())).Milliseconds()
	return h, nil
}

// recheck returns why the mirror may not stay, although it was accepted.
func (m *mirror) recheck(up Upstream) error {
	switch {
	case time.Now().After(m.notAfter):
		return end(heliograph.CodeTimeout, "the mirror's certificate ended at %s: connect with a renewed one", m.notAfter.UTC().Format(time.RFC3339))
	case m.nodeID != "" && slices.Contains(up.Path, m.nodeID):
		return end(heliograph.CodeCycle, "node %s has come to follow %.80q itself", m.srv.cfg.NodeID, m.nodeID)
	}
	return m.checkGeneration()
}

func (s *Server) heartbeat(up Upstream) wire.Heartbeat {
	h := wire.Heartbeat{
		HeadLSN:     s.cfg.Replica.Applied(),
		CompactLSN:  s.cfg.Replica.Compacted(),
		UpstreamLSN: up.Head,
		StalenessMS: -1,
		Why:         up.Why,
		Path:        s.path(up),
	}
	if up.Staleness >= 0 {
		h.StalenessMS = up.Staleness.Milliseconds()
	}
	h.AuthEnabled, h.AuthRevision, h.AuthKnown = s.cfg.Replica.Auth()
	return h
}

// path returns the node ids from the origin down to this node.
func (s *Server) path(up Upstream) []string {
	return append(slices.Clip(slices.Clone(up.Path)), s.cfg.NodeID)
}
