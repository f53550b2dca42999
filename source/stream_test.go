package source_test

import (
	"errors"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

func TestSnapshotThenStream(t *testing.T) {
	t.Parallel()
	replica := newMemory(50)
	replica.compact(30)
	w := start(t, replica, nil)
	for name, at := range map[string]int64{"fresh": 0, "compacted away": 29} {
		t.Run(name, func(t *testing.T) {
			head := replica.Applied()
			p := w.connect("m1")
			ack := p.follow(at)
			for range 20 { // between the snapshot and the stream
				replica.put(1, 64)
			}
			if end := p.snapshot(ack); end.Rev < head {
				t.Errorf("snapshot at %d, head was %d", end.Rev, head)
			}
			p.take(replica, head+20)
			if n := locked(replica, func() int { return replica.pinned }); n != 1 {
				t.Errorf("%d snapshots in use before the ack", n)
			}
			p.ack(head + 20)
			eventually(t, "the snapshot is released", func() bool {
				return locked(replica, func() int { return replica.pinned }) == 0
			})
		})
	}
	if got := w.metric("snapshots_total"); got != 2 {
		t.Errorf("%v snapshots counted", got)
	}
	if got := w.metric("sent_frames_total", "kind", "snapshot"); got < 6 {
		t.Errorf("%v snapshot frames counted", got)
	}
	if got := w.metric("sent_bytes_total", "kind", "entries"); got == 0 {
		t.Error("no bytes of entries counted")
	}
}

// TestSnapshotTakesLong: a hello does not wait for a large copy; the mirror comes
// back, and the copy that was made meanwhile is its own and is made once.
func TestSnapshotTakesLong(t *testing.T) {
	t.Parallel()
	replica := newMemory(10)
	replica.slow = make(chan struct{})
	w := start(t, replica, func(c *source.Config) { c.SnapshotWait = 50 * time.Millisecond })
	for range 2 {
		p := w.connect("m1")
		if ack := p.greet(hello(0)); ack.Accepted || ack.ErrorCode != heliograph.CodeOverloaded {
			t.Fatalf("ack %+v", ack)
		}
		p.closed(heliograph.CodeOverloaded)
	}
	close(replica.slow)
	eventually(t, "the copy is made", func() bool { return locked(replica, func() int { return replica.made }) == 1 })
	p := w.connect("m1")
	p.snapshot(p.follow(0))
	if n := locked(replica, func() int { return replica.made }); n != 1 {
		t.Errorf("%d copies were made", n)
	}
	p.ack(10)
	eventually(t, "the copy is released", func() bool { return locked(replica, func() int { return replica.pinned }) == 0 })
}

// TestTwoMirrors: one follows at the head, one catches up, both get everything,
// written at full speed.
func TestTwoMirrors(t *testing.T) {
	t.Parallel()
	replica := newMemory(2000)
	w := start(t, replica, nil)
	a, b := w.connect("a"), w.connect("b")
	a.follow(2000)
	b.follow(1)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range 3000 {
			replica.put(1+i%3, 200)
		}
	}()
	a.take(replica, 5000)
	b.take(replica, 5000)
	<-written
	a.ack(5000)
	b.ack(4000)
	eventually(t, "both acks", func() bool {
		d := w.server.Downstreams()
		return len(d) == 2 && d[0].AppliedRevision == 5000 && d[1].AppliedRevision == 4000 && d[0].InFlightBytes == 0 && d[1].InFlightBytes > 0
	})
}

// TestEncodeOnce: what ten mirrors at the head get is encoded once, and their
// number costs no read of the history.
func TestEncodeOnce(t *testing.T) {
	t.Parallel()
	replica := newMemory(10)
	w := start(t, replica, nil)
	var peers []*peer
	for range 10 {
		p := w.connect("m")
		p.follow(10)
		peers = append(peers, p)
	}
	eventually(t, "all are live", func() bool {
		live := 0
		for _, d := range w.server.Downstreams() {
			if d.State == "live" {
				live++
			}
		}
		return live == 10
	})
	const rounds = 50
	for rev := int64(11); rev <= 10+rounds; rev++ {
		replica.put(2, 500)
		for _, p := range peers {
			p.take(replica, rev)
		}
	}
	if got := w.metric("encoded_frames_total", "by", "feed"); got != rounds {
		t.Errorf("%v frames encoded by the feed, want %d", got, rounds)
	}
	if got := w.metric("encoded_frames_total", "by", "mirror"); got != 0 {
		t.Errorf("%v frames encoded for single mirrors", got)
	}
	if got := w.metric("sent_frames_total", "kind", "entries"); got != 10*rounds {
		t.Errorf("%v frames sent, want %d", got, 10*rounds)
	}
	// With nobody at the head the feed rests.
	for _, p := range peers {
		p.conn.CloseWithError(0, "")
	}
	eventually(t, "all are gone", func() bool { return len(w.server.Downstreams()) == 0 })
	before := locked(replica, func() int { return replica.visits })
	replica.put(1, 10)
	p := w.connect("m")
	p.follow(replica.Applied()) // has passed everything that a feed at work would have read
	replica.put(1, 10)
	p.take(replica, replica.Applied())
	if got := locked(replica, func() int { return replica.visits }) - before; got > 2 {
		t.Errorf("%d reads of the history for one revision", got)
	}
}

// TestSmallRing: a mirror that falls out of the ring reads the history and comes
// back to the ring, without a gap.
func TestSmallRing(t *testing.T) {
	t.Parallel()
	replica := newMemory(10)
	w := start(t, replica, func(c *source.Config) { c.RingBytes = 2000 })
	quick, slow := w.connect("quick"), w.connect("slow")
	quick.follow(10)
	slow.follow(10)
	quick.take(replica, 10)
	for range 2 {
		for range 30 {
			replica.put(1, 300_000) // more than flow control takes unread
		}
		quick.take(replica, replica.Applied())
		quick.ack(replica.Applied())
		slow.take(replica, replica.Applied())
		slow.ack(replica.Applied())
	}
	if got := w.metric("encoded_frames_total", "by", "mirror"); got == 0 {
		t.Error("nobody ever fell out of the ring")
	}
}

// TestWindow: at most a window is in flight; acknowledgements open it again.
func TestWindow(t *testing.T) {
	t.Parallel()
	const window = 300 << 10 // below what flow control takes unread
	replica := newMemory(1)
	for range 200 {
		replica.put(1, 20_000)
	}
	w := start(t, replica, func(c *source.Config) { c.WindowBytes = window })
	p := w.connect("m1")
	p.follow(1)
	inFlight := func() heliograph.Downstream { return w.server.Downstreams()[0] }
	for head := replica.Applied(); p.next <= head; {
		eventually(t, "the window is full or all is sent", func() bool {
			d := inFlight()
			return d.InFlightBytes >= window || d.SentRevision == head
		})
		d := inFlight()
		if d.InFlightBytes >= window+(512<<10) {
			t.Fatalf("%d bytes in flight", d.InFlightBytes)
		}
		p.take(replica, d.SentRevision)
		p.ack(p.next - 1)
		acked := p.next - 1
		eventually(t, "the ack", func() bool { return inFlight().AppliedRevision == acked })
	}
}

// TestHugeRevision: a revision larger than a page, a ring and a window goes over
// many frames and stays one revision, for who catches up and for who is live.
func TestHugeRevision(t *testing.T) {
	t.Parallel()
	replica := newMemory(5)
	w := start(t, replica, func(c *source.Config) { c.WindowBytes, c.RingBytes = 1<<20, 1<<20 })
	live := w.connect("live")
	live.follow(5)
	eventually(t, "live", func() bool { return w.server.Downstreams()[0].State == "live" })
	replica.put(4000, 4000) // 16 MB
	replica.put(3, 10)
	behind := w.connect("behind")
	behind.follow(2)
	for _, p := range []*peer{live, behind} {
		if frames := p.take(replica, 6); frames < 50 {
			t.Errorf("%d frames", frames)
		}
		p.ack(6) // the window is full until then
		p.take(replica, 7)
		p.ack(7)
	}
	replica.put(1, 10<<20) // one record larger than a frame should be
	live.take(replica, 8)
	behind.take(replica, 8)
}

// TestHistoryGone: a mirror that was overtaken by a compaction is told, never
// served a jump (fault 4).
func TestHistoryGone(t *testing.T) {
	t.Parallel()
	replica := newMemory(1)
	for range 100 {
		replica.put(1, 20_000)
	}
	w := start(t, replica, func(c *source.Config) { c.WindowBytes = 300 << 10 })
	p := w.connect("m1")
	p.follow(1)
	eventually(t, "the window is full", func() bool { return w.server.Downstreams()[0].InFlightBytes >= 300<<10 })
	sent := w.server.Downstreams()[0].SentRevision
	replica.compact(sent + 5)
	p.take(replica, sent)
	p.ack(sent)
	p.goodbye(heliograph.CodeHistoryGone)

	again := w.connect("m1")
	ack := again.follow(sent)
	if ack.SnapshotLSN != uint64(replica.Applied()) {
		t.Errorf("ack %+v", ack)
	}
	// Right above the floor the history is enough.
	if ack := w.connect("m2").follow(sent + 5); ack.SnapshotLSN != wire.NoSnapshot {
		t.Errorf("ack %+v", ack)
	}
}

// TestGenerationChange: when the replica was replaced, everybody starts anew
// (fault 30), whatever they were doing.
func TestGenerationChange(t *testing.T) {
	t.Parallel()
	replica := newMemory(1)
	for range 100 {
		replica.put(1, 20_000)
	}
	replica.blob = 30 << 20
	w := start(t, replica, func(c *source.Config) { c.WindowBytes = 300 << 10 })
	live, blocked, fresh := w.connect("live"), w.connect("blocked"), w.connect("fresh")
	live.follow(101)
	blocked.follow(1)
	fresh.follow(0) // does not read: in the middle of its snapshot
	eventually(t, "everybody is somewhere", func() bool {
		d := w.server.Downstreams()
		return d[0].InFlightBytes >= 300<<10 && d[1].State == "snapshot" && d[2].State == "live"
	})
	replica.replace()
	replica.put(1, 10)
	for _, p := range []*peer{live, blocked, fresh} {
		p.farewell(heliograph.CodeReset)
	}
	for _, p := range []*peer{live, blocked, fresh} {
		p.closed(heliograph.CodeReset)
	}
	if got := w.metric("endings_total", "code", "reset"); got != 3 {
		t.Errorf("%v endings counted", got)
	}
	if live.bulk != nil {
		t.Error("a record of the new contents was sent")
	}
	p := w.connect("live")
	p.follow(101)
	p.take(replica, 102)
}

func TestUnreadableHistory(t *testing.T) {
	t.Parallel()
	replica := newMemory(10)
	replica.failWith = errors.New("disk on fire")
	w := start(t, replica, nil)
	p := w.connect("m1")
	p.follow(5)
	p.goodbye(heliograph.CodeNotReady)
}

func TestLagOfDownstream(t *testing.T) {
	t.Parallel()
	replica := newMemory(10)
	w := start(t, replica, nil)
	p := w.connect("m1")
	p.follow(5)
	p.take(replica, 10)
	eventually(t, "lag grows without acks", func() bool { return w.server.Downstreams()[0].LagMS > 50 })
	p.ack(10)
	eventually(t, "lag is 0 when all is applied", func() bool { return w.server.Downstreams()[0].LagMS == 0 })
	if d := w.server.Downstreams()[0]; d.ConnectedMS < 50 || d.Address == "" {
		t.Errorf("downstream %+v", d)
	}
}

// TestRingOutlivesCompaction: a compaction at the head does not send a live
// mirror back for a snapshot while the ring still holds what it lacks.
func TestRingOutlivesCompaction(t *testing.T) {
	t.Parallel()
	replica := newMemory(10)
	w := start(t, replica, nil)
	p := w.connect("m1")
	p.follow(10)
	eventually(t, "live", func() bool { return w.server.Downstreams()[0].State == "live" })
	const revs = 20
	for i := range revs { // more than flow control takes unread
		replica.put(1, 200_000)
		eventually(t, "the feed has it", func() bool { return w.metric("encoded_frames_total", "by", "feed") >= float64(i+1) })
	}
	replica.compact(10 + revs)
	p.take(replica, 10+revs)
	if got := w.metric("encoded_frames_total", "by", "mirror"); got != 0 {
		t.Errorf("%v frames were read from the history", got)
	}
}
