package link

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// session is one accepted connection. Seven goroutines share it: one reads control,
// one writes it, one receives bulk, one passes compaction on, one passes leases
// and the like on, one watches, one compares the source with others. None of them waits for another's work.
type session struct {
	cfg     *Config
	link    *Link
	target  target
	peer    string
	conn    *connection
	control *quic.Stream
	frames  *wire.Reader // of control
	ack     wire.HelloAck
	plan    plan

	vigil    *vigil
	acks     *acks
	reads    *reads
	verifies *verifies
	facts    *facts

	outgoing   chan struct{} // wakes the writer of control
	compaction chan struct{} // wakes the one that passes compaction on
	leaving    chan error    // of capacity 1: why to leave the source
	began      time.Time
	startRev   int64        // what the replica had when it said hello
	applied    atomic.Int64 // what it has been brought to

	// applying lets one goroutine at a time change the replica, as
	// heliograph.Replica wants it.
	applying sync.Mutex
}

func newSession(l *Link, t target, conn *connection, control *quic.Stream, frames *wire.Reader, at int64, ack wire.HelloAck, p plan) *session {
	s := &session{
		cfg: &l.cfg, link: l, target: t, peer: t.String(), conn: conn, control: control, frames: frames, ack: ack, plan: p, startRev: at,
		outgoing:   make(chan struct{}, 1),
		compaction: make(chan struct{}, 1),
		leaving:    make(chan error, 1),
		began:      time.Now(),
		facts:      newFacts(),
	}
	s.vigil = &vigil{
		peer: s.peer, silence: l.cfg.Silence, stall: l.cfg.Stall, snapshotStall: l.cfg.SnapshotStall,
		heard: time.Now(), head: ack.HeadLSN, compacted: ack.CompactLSN,
	}
	if certs := conn.ConnectionState().TLS.PeerCertificates; len(certs) > 0 {
		s.vigil.notAfter = certs[0].NotAfter
	}
	s.acks = &acks{replica: l.cfg.Replica, delay: l.cfg.AckDelay, sync: l.cfg.Mode == heliograph.Sync}
	s.reads = newReads(func() { wake(s.outgoing) })
	s.verifies = newVerifies(func() { wake(s.outgoing) })
	s.applied.Store(at)
	return s
}

// wake wakes whoever waits on c; it asks then what has changed.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run follows the source until something fails or ctx ends, and returns why
// when all its goroutines have.
func (s *session) run(parent context.Context) error {
	g, ctx := errgroup.WithContext(parent)
	g.Go(func() error { return s.readControl() })
	g.Go(func() error { return s.writeControl(ctx) })
	g.Go(func() error { return s.receive(ctx) })
	g.Go(func() error { return s.passCompaction(ctx) })
	g.Go(func() error { return s.passFacts(ctx) })
	g.Go(func() error { return s.watch(ctx) })
	g.Go(func() error { return s.compare(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		s.part(closeCode(parent, context.Cause(ctx)))
		return nil
	})
	err := g.Wait()
	if parent.Err() != nil {
		return context.Cause(parent)
	}
	return err
}

// leave ends the session, if it has not ended.
func (s *session) leave(why error) {
	select {
	case s.leaving <- why:
	default: // it is leaving
	}
}

// part tells the source why and ends every read and write of the others. The
// goodbye is best effort; the code travels with the end of the connection, too.
func (s *session) part(code heliograph.Code) {
	_ = s.control.TryWriteAll(wire.Goodbye{Code: code, Detail: code.String()}.AppendFrame(nil))
	_ = s.conn.CloseWithError(quic.ApplicationErrorCode(code), code.String())
}

// readControl handles the source's control frames. Nothing here blocks on the
// replica: what it takes long to do would look like silence.
func (s *session) readControl() error {
	for {
		kind, payload, err := s.frames.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the source ended the control stream")
			}
			return brokenFrame(kind, err)
		}
		s.vigil.hear(time.Now())
		switch kind {
		case wire.TypeHeartbeat:
			err = s.heartbeat(payload)
		case wire.TypeReadIndexReply:
			var reply wire.ReadIndexReply
			if reply, err = wire.DecodeReadIndexReply(payload); err == nil {
				err = s.reads.answer(reply)
			}
		case wire.TypeVerifyReply:
			var reply wire.VerifyReply
			if reply, err = wire.DecodeVerifyReply(payload); err == nil {
				err = s.verifies.answer(reply)
			}
		case wire.TypeLeases:
			var frame wire.Leases
			if frame, err = wire.DecodeLeases(payload); err == nil {
				err = s.facts.leases(frame)
			}
		case wire.TypeGoodbye:
			var bye wire.Goodbye
			if bye, err = wire.DecodeGoodbye(payload); err == nil {
				err = parted(bye)
			}
		default:
			err = &fault{"protocol", wire.CodeOf(kind, nil), broken("an unexpected %s frame", kind)}
		}
		if err != nil {
			return brokenPayload(kind, err)
		}
	}
}

// parted is the error that a source's goodbye ends the session with.
func parted(bye wire.Goodbye) error {
	if bye.Code == heliograph.CodeOK {
		return errors.New("the source ended the connection")
	}
	return &heliograph.RefusedError{Code: bye.Code, Detail: bye.Detail}
}

// millis is a source's number of milliseconds, kept from overflowing a Duration.
func millis(ms int64) time.Duration {
	const most = 100 * 365 * 24 * time.Hour
	return time.Duration(min(ms, most.Milliseconds())) * time.Millisecond
}

func (s *session) heartbeat(payload []byte) error {
	h, err := wire.DecodeHeartbeat(payload)
	if err != nil {
		return err
	}
	if err := checkPath(s.cfg.NodeID, h.Path); err != nil {
		return err
	}
	s.link.setPath(h.Path)
	s.vigil.heartbeat(time.Now(), h, s.applied.Load())
	staleness := time.Duration(-1)
	if h.StalenessMS >= 0 {
		staleness = millis(h.StalenessMS)
	}
	// First, so that what is heard next is not taken for newer than it is.
	s.cfg.Reporter.Upstream(staleness, h.Why)
	s.cfg.Reporter.Heard(s.vigil.horizon())
	wake(s.compaction)
	s.facts.heard(h)
	return nil
}

// writeControl sends heartbeats, acks and read-index requests.
func (s *session) writeControl(ctx context.Context) error {
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	ackAgain := time.NewTimer(0)
	defer ackAgain.Stop()
	var buf []byte
	for {
		buf = buf[:0]
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			buf = s.beat(buf)
		case <-s.outgoing:
		case <-ackAgain.C:
		}
		ack, send, wait := s.acks.due(time.Now())
		if send {
			buf = ack.AppendFrame(buf)
			s.link.metrics.acks.Inc()
		}
		if wait > 0 {
			ackAgain.Reset(wait)
		}
		buf = s.reads.appendFrames(buf)
		buf = s.verifies.appendFrames(buf)
		if len(buf) == 0 {
			continue
		}
		if err := s.control.SetWriteDeadline(time.Now().Add(s.cfg.Silence)); err != nil {
			return err
		}
		if _, err := s.control.Write(buf); err != nil {
			return err
		}
	}
}

// beat appends a heartbeat.
func (s *session) beat(dst []byte) []byte {
	return wire.Heartbeat{HeadLSN: s.cfg.Replica.Applied(), CompactLSN: s.cfg.Replica.Compacted(), StalenessMS: -1}.AppendFrame(dst)
}

// passCompaction tells the replica the source's compaction revision after each
// heartbeat; a replica that was replaced since has to hear it again.
func (s *session) passCompaction(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.compaction:
		}
		if _, rev := s.vigil.horizon(); rev > 0 {
			s.applying.Lock()
			s.cfg.Replica.Compact(rev)
			s.applying.Unlock()
		}
	}
}

// watch ends the session when the source no longer lives, or is to be left.
func (s *session) watch(ctx context.Context) error {
	tick := time.NewTicker(max(s.cfg.Silence/50, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.leaving:
			return err
		case <-tick.C:
			if err := s.vigil.verdict(time.Now()); err != nil {
				return err
			}
		}
	}
}
