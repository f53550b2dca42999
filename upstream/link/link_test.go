package link_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

func TestFreshMirrorGetsSnapshotThenStream(t *testing.T) {
	w := newWorld(t)
	reg := prometheus.NewRegistry()
	w.cfg.Metrics = reg
	data := snapshotOf(42, 5*chunkBytes+17)
	src := w.source(func(c *conn) {
		c.accept(snapshotAck(42, data))
		c.giveSnapshot(42, data)
		s := c.bulk()
		put(s, upTo(t, 43, 50), upTo(t, 51, 60))
		c.hold()
	})
	l := w.run()
	w.applied(60)

	c := src.last(t)
	if got, want := c.hello, (wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", ProtocolVersion: 1, NodeID: nodeID}); got != want {
		t.Errorf("hello %+v, want %+v", got, want)
	}
	w.bell.until(t, "all is acknowledged", func() bool {
		a, _ := c.lastAck()
		return a == wire.Ack{AppliedLSN: 60, DurableLSN: 60}
	})
	if first := c.acks[0]; first.AppliedLSN < 42 {
		t.Errorf("first ack %+v is below the snapshot's revision", first)
	}
	if got := w.replica.Origin(); got != origin {
		t.Errorf("origin %v, want %v", got, origin)
	}
	if !bytes.Equal(w.replica.received, data) || w.replica.installs != 1 {
		t.Errorf("the snapshot differs, or was installed %d times", w.replica.installs)
	}
	if got, want := w.reporter.progress[len(w.reporter.progress)-1], [2]int64{int64(len(data)), int64(len(data))}; got != want {
		t.Errorf("progress %v, want %v", got, want)
	}
	if w.reporter.applied[0] != 42 || w.reporter.head != 60 {
		t.Errorf("reported applied %v, head %d", w.reporter.applied, w.reporter.head)
	}
	if got := l.Path(); !slices.Equal(got, []string{"source-1"}) {
		t.Errorf("path %v", got)
	}
	for name, want := range map[string]float64{
		"heliograph_link_applied_revisions_total": 18, "heliograph_link_connected": 1,
		"heliograph_link_snapshots_total/installed": 1, "heliograph_link_dials_total/ok": 1,
	} {
		if got := gathered(t, reg)[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"heliograph_link_received_bytes_total/snapshot", "heliograph_link_received_bytes_total/entries", "heliograph_link_acks_total"} {
		if gathered(t, reg)[name] == 0 {
			t.Errorf("%s did not move", name)
		}
	}
}

// Row 5: nothing is lost or sent twice over a reconnect.
func TestResume(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	src := w.source(
		func(c *conn) { c.accept(helloAck(110)); put(c.bulk(), upTo(t, 101, 105)); w.applied(105) },
		func(c *conn) { c.accept(helloAck(110)); put(c.bulk(), upTo(t, 106, 110)); c.hold() },
	)
	w.run()
	w.applied(110)
	for i, rev := range []int64{100, 105} {
		if h := src.conn(i).hello; h.LastAppliedLSN != rev || h.Origin != origin.String() {
			t.Errorf("hello %d: %+v", i, h)
		}
	}
	if len(w.replica.batches) != 10 {
		t.Errorf("applied %v", w.replica.batches)
	}
}

// Row 10: cut anywhere, a snapshot leaves nothing behind, and the next is whole.
func TestCutAtEveryChunk(t *testing.T) {
	w := newWorld(t)
	data := snapshotOf(42, 6*chunkBytes)
	frames := chunks(42, data)
	var scripts []script
	for n := range frames {
		scripts = append(scripts, func(c *conn) {
			c.accept(snapshotAck(42, data))
			s := c.bulk()
			put(s, frames[:n]...)
			put(s, frames[n][:len(frames[n])/2])
			w.bell.until(t, "the chunks arrive", func() bool {
				w.replica.mu.Lock()
				defer w.replica.mu.Unlock()
				return len(w.replica.received) >= min(n, 6)*chunkBytes
			})
		})
	}
	scripts = append(scripts, func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() })
	w.source(scripts...)
	w.run()
	w.applied(42)
	w.replica.mu.Lock()
	defer w.replica.mu.Unlock()
	// A stream that was cut before its first byte arrived has begun nothing.
	if w.replica.installs != 1 || w.replica.aborts < len(frames)-1 || w.replica.aborts > len(frames) || w.replica.receiving {
		t.Errorf("%d installed, %d aborted of %d, receiving %v", w.replica.installs, w.replica.aborts, len(frames), w.replica.receiving)
	}
}

func TestBadSnapshots(t *testing.T) {
	data := snapshotOf(42, 3*chunkBytes)
	good := chunks(42, data)
	sum := wire.SnapshotEnd{Rev: 42, Size: int64(len(data))}
	end := func(f func(*wire.SnapshotEnd)) []byte {
		e := sum
		f(&e)
		return e.AppendFrame(nil)
	}
	flipped := bytes.Clone(good[1])
	flipped[len(flipped)-1] ^= 1
	for _, test := range []struct {
		name   string
		frames [][]byte
		want   string
	}{
		{"wrong sum", [][]byte{good[0], good[1], good[2], sum.AppendFrame(nil)}, "SHA-256"},
		{"wrong size", [][]byte{good[0], good[1], good[2], end(func(e *wire.SnapshotEnd) { e.Size-- })}, "the end of a snapshot"},
		{"too short", [][]byte{good[0], good[1], end(func(e *wire.SnapshotEnd) { e.Size = 2 * chunkBytes })}, "the end of a snapshot"},
		{"wrong revision", [][]byte{good[0], good[1], good[2], end(func(e *wire.SnapshotEnd) { e.Rev = 43 })}, "the end of a snapshot"},
		{"chunk left out", [][]byte{good[0], good[2]}, "at offset 2048 after 1024"},
		{"chunk twice", [][]byte{good[0], good[0]}, "at offset 0 after 1024"},
		{"too long", [][]byte{good[0], good[1], good[2], wire.AppendChunk(nil, 3*chunkBytes, []byte("x"), nil)}, "1 bytes at offset 3072"},
		{"flipped bit", [][]byte{good[0], flipped}, "checksum"},
		{"entries within", [][]byte{good[0], entries(t, 43, 43)}, "entries frame within"},
		{"frame behind", [][]byte{good[0], good[1], good[2], good[3], good[0]}, "behind the snapshot"},
		{"control frame", [][]byte{wire.Goodbye{}.AppendFrame(nil)}, "not expected"},
		{"oversize", [][]byte{{byte(wire.TypeChunk), 0xff, 0xff, 0xff, 0xff}}, "larger than"},
		{"voter frame", [][]byte{{0x80, 0, 0, 0, 0}}, "not expected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.source(
				func(c *conn) {
					c.accept(snapshotAck(42, data))
					s := c.bulk()
					put(s, test.frames...)
					if s != nil {
						_ = s.Close()
					}
					c.hold()
				},
				func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() },
			)
			w.run()
			if err := w.lost(1); !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
			w.applied(42)
			if w.replica.installs != 1 || w.replica.aborts != 1 {
				t.Errorf("%d installed, %d aborted", w.replica.installs, w.replica.aborts)
			}
		})
	}
}

func TestSnapshotOfAnotherRevision(t *testing.T) {
	w := newWorld(t)
	w.replica.installAs = 41
	data := snapshotOf(42, chunkBytes)
	w.source(func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() },
		func(c *conn) { c.accept(helloAck(42)); c.hold() })
	w.run()
	if err := w.lost(1); !strings.Contains(err.Error(), "holds revision 41") {
		t.Errorf("lost: %v", err)
	}
}

func TestBadEntries(t *testing.T) {
	flipped := upTo(t, 101, 102)
	flipped[len(flipped)-1] ^= 1
	half := func() []byte {
		var e wire.EntriesEncoder
		if err := e.Add(key(101, 0), nil); err != nil {
			t.Fatal(err)
		}
		return e.AppendFrame(nil, 101, true, nil)
	}()
	for _, test := range []struct {
		name   string
		frames [][]byte
		stays  int64
		want   string
	}{
		{"gap at the start", [][]byte{upTo(t, 102, 103)}, 100, "do not follow"},
		{"duplicate at the start", [][]byte{upTo(t, 100, 103)}, 100, "do not follow"},
		{"gap between frames", [][]byte{upTo(t, 101, 102), upTo(t, 104, 105)}, 102, "do not follow"},
		{"frame twice", [][]byte{upTo(t, 101, 102), upTo(t, 101, 102)}, 102, "do not follow"},
		{"frames swapped", [][]byte{upTo(t, 103, 104), upTo(t, 101, 102)}, 100, "do not follow"},
		{"gap within a frame", [][]byte{entries(t, 103, 101, 103)}, 100, "malformed"},
		{"duplicate within a frame", [][]byte{entries(t, 103, 101, 101)}, 100, "malformed"},
		{"order within a frame", [][]byte{entries(t, 103, 102, 101)}, 100, "malformed"},
		{"revision that is not ended", [][]byte{half, upTo(t, 102, 102)}, 100, "do not follow"},
		{"flipped bit", [][]byte{flipped}, 100, "checksum"},
		{"snapshot chunk", [][]byte{wire.AppendChunk(nil, 0, []byte("x"), nil)}, 100, "snapshot-chunk frame among"},
		{"oversize", [][]byte{{byte(wire.TypeEntries), 0xff, 0xff, 0xff, 0xff}}, 100, "larger than"},
		{"garbage", [][]byte{bytes.Repeat([]byte{0x5a}, 100)}, 100, "not expected"},
		{"empty", [][]byte{{byte(wire.TypeEntries), 0, 0, 0, 0}}, 100, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			src := w.source(
				func(c *conn) { c.accept(helloAck(105)); put(c.bulk(), test.frames...); c.hold() },
				func(c *conn) { c.refuse(heliograph.CodeDiverged, "enough") },
			)
			l := w.run()
			if err := w.lost(1); !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
			if err := l.wait(t); err == nil {
				t.Error("Run returned nil")
			}
			if got := w.replica.Applied(); got != test.stays {
				t.Errorf("applied %d, want %d", got, test.stays)
			}
			if app, ok := errors.AsType[*quic.ApplicationError](context.Cause(src.conn(0).Context())); !ok || app.ErrorCode != quic.ApplicationErrorCode(heliograph.CodeProtocol) {
				t.Errorf("the source was told %v", context.Cause(src.conn(0).Context()))
			}
		})
	}
}

// Row 8: a revision of several frames is one batch.
func TestRevisionOverSeveralFrames(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.source(func(c *conn) {
		c.accept(helloAck(101))
		s := c.bulk()
		for sub := range int64(3) {
			var e wire.EntriesEncoder
			if err := e.Add(key(101, sub), []byte("v")); err != nil {
				t.Error(err)
			}
			put(s, e.AppendFrame(nil, 101, sub < 2, nil))
		}
		c.hold()
	})
	w.run()
	w.applied(101)
	if w.replica.records != 3 || len(w.replica.batches) != 1 {
		t.Errorf("%d records in %d batches", w.replica.records, len(w.replica.batches))
	}
}

func TestAnswersNotTaken(t *testing.T) {
	raw := func(b ...byte) script {
		return func(c *conn) { _, _ = c.control.Write(b); c.hold() }
	}
	answer := func(f func(*wire.HelloAck)) script {
		return func(c *conn) {
			ack := helloAck(100)
			f(&ack)
			c.send(ack)
			c.hold()
		}
	}
	long := make([]string, wire.MaxPath)
	for i := range long {
		long[i] = "node"
	}
	for _, test := range []struct {
		name   string
		at     int64
		script script
		want   string
		mend   bool // somebody has to mend a configuration
	}{
		{"wrong cluster", 100, answer(func(a *wire.HelloAck) { a.SourceClusterID = "prod-eu" }), `cluster "prod-eu" and the address names "prod-us"`, true},
		{"self", 100, answer(func(a *wire.HelloAck) { a.NodeID = nodeID }), "this node's own", true},
		{"cycle", 100, answer(func(a *wire.HelloAck) { a.Path = []string{"a", nodeID, "b"} }), "follows this node", true},
		{"chain too long", 100, answer(func(a *wire.HelloAck) { a.Path = long }), "chain of 16", true},
		{"malformed origin", 100, answer(func(a *wire.HelloAck) { a.Origin = "x" }), "broke the protocol", false},
		{"step back", 100, answer(func(a *wire.HelloAck) { a.SnapshotLSN = 99 }), "never steps back", false},
		{"snapshot at 0", 100, answer(func(a *wire.HelloAck) { a.SnapshotLSN = 0 }), "snapshot at revision 0", false},
		{"no snapshot for a fresh mirror", 0, answer(func(*wire.HelloAck) {}), "no snapshot", false},
		{"refusal without a code", 100, answer(func(a *wire.HelloAck) { a.Accepted = false }), "without a code", false},
		{"other frame", 100, func(c *conn) { c.send(wire.Heartbeat{}); c.hold() }, "heartbeat frame instead", false},
		{"garbage", 100, raw(bytes.Repeat([]byte{0x5a}, 64)...), "broke the protocol", false},
		{"oversize", 100, raw(byte(wire.TypeHelloAck), 0xff, 0, 0, 0), "larger than", false},
		{"not a map", 100, raw(byte(wire.TypeHelloAck), 0, 0, 0, 1, 0xc0), "broke the protocol", false},
		{"short map", 100, raw(byte(wire.TypeHelloAck), 0, 0, 0, 1, 0x86), "broke the protocol", false},
		{"no answer", 100, func(c *conn) { c.hold() }, "no answer", false},
		{"stream ended", 100, func(c *conn) { _ = c.control.Close(); c.hold() }, "answer to the hello: EOF", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.at > 0 {
				w.replica.at(test.at)
			}
			if test.name == "no answer" {
				w.cfg.AckTimeout = 50 * time.Millisecond
			}
			w.source(test.script)
			w.run()
			err := w.lost(1)
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
			if _, mend := errors.AsType[*link.ConfigurationError](err); mend != test.mend {
				t.Errorf("ConfigurationError: %v, want %v", mend, test.mend)
			}
			if len(w.reporter.connected) > 0 || w.replica.Applied() != test.at {
				t.Error("it was followed")
			}
		})
	}
}

// Rows 1 and 2: another history is named once, and nothing of it is applied.
func TestDiverged(t *testing.T) {
	other := func(c *conn) {
		ack := helloAck(100)
		ack.Origin = "prod-us/default@def"
		c.accept(ack)
		put(c.bulk(), upTo(t, 101, 110))
		c.hold()
	}
	for _, test := range []struct {
		name   string
		script script
		apply  error
		want   string
	}{
		{"other origin", other, nil, "the history of prod-us/default@def and this mirror that of prod-us/default@abc"},
		{"no origin", func(c *conn) {
			ack := helloAck(100)
			ack.Origin = ""
			c.accept(ack)
			c.hold()
		}, nil, "the history of prod-us/default@0"},
		{"refused", func(c *conn) { c.refuse(heliograph.CodeDiverged, "you are ahead of me") }, nil, "you are ahead of me"},
		{"goodbye", func(c *conn) { c.accept(helloAck(100)); c.goodbye(heliograph.CodeDiverged, "") }, nil, "another history"},
		{"replica", func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() },
			&heliograph.DivergedError{Rev: 101, Why: "the bytes differ"}, "the bytes differ"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.replica.applyErr = func(int64) error { return test.apply }
			w.source(test.script)
			w.source(func(*conn) { t.Error("another address was tried") })
			err := w.run().wait(t)
			d, ok := err.(*heliograph.DivergedError)
			if !ok || !strings.Contains(d.Why, test.want) {
				t.Errorf("Run: %v, want a divergence with %q", err, test.want)
			}
			if w.replica.Applied() != 100 {
				t.Errorf("applied %d", w.replica.Applied())
			}
			if n := len(w.reporter.losses()); n != 1 {
				t.Errorf("%d losses reported", n)
			}
		})
	}
}

func TestNextAddress(t *testing.T) {
	follow := func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() }
	for _, code := range []heliograph.Code{
		heliograph.CodeNotReady, heliograph.CodeOverloaded, heliograph.CodeShuttingDown, heliograph.CodeUnknownDatabase, heliograph.CodeClusterMismatch,
	} {
		t.Run(code.String(), func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.source(func(c *conn) { c.refuse(code, "not here") })
			second := w.source(follow)
			w.run()
			w.applied(101)
			if r, ok := errors.AsType[*heliograph.RefusedError](w.lost(1)); !ok || r.Code != code || r.Detail != "not here" {
				t.Errorf("lost: %v", w.lost(1))
			}
			if want := []string{w.cfg.Address.Hosts[0], second.addr}; !slices.Equal(w.reporter.connecting, want) {
				t.Errorf("tried %v, want %v", w.reporter.connecting, want)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.DialTimeout = 100 * time.Millisecond
		dead, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer dead.Close()
		w.cfg.Address.Hosts = []string{dead.LocalAddr().String(), "no-such-host.invalid:7400"}
		w.source(follow)
		w.run()
		w.applied(101)
		if err := w.lost(1); !strings.Contains(err.Error(), "no answer from "+dead.LocalAddr().String()) {
			t.Errorf("lost: %v", err)
		}
		if err := w.lost(2); !strings.Contains(err.Error(), "no-such-host.invalid") {
			t.Errorf("lost: %v", err)
		}
	})
	t.Run("every address of a name", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.DialTimeout = 300 * time.Millisecond
		w.cfg.Listen = nil
		src := w.source(follow)
		_, port, err := net.SplitHostPort(src.addr)
		if err != nil {
			t.Fatal(err)
		}
		w.cfg.Address.Hosts = []string{net.JoinHostPort("localhost", port)}
		w.run()
		w.applied(101)
		if got := w.reporter.connected; !slices.Equal(got, []string{"localhost:" + port + " (127.0.0.1:" + port + ")"}) {
			t.Errorf("connected to %v", got)
		}
	})
}

func TestGoodbye(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	data := snapshotOf(200, chunkBytes)
	src := w.source(
		func(c *conn) { c.accept(helloAck(200)); c.goodbye(heliograph.CodeHistoryGone, "compacted at 150") },
		func(c *conn) {
			c.accept(snapshotAck(200, data))
			c.giveSnapshot(200, data)
			put(c.bulk(), upTo(t, 201, 202))
			w.applied(202)
			c.goodbye(heliograph.CodeShuttingDown, "")
		},
		func(c *conn) { c.accept(helloAck(202)); c.goodbye(heliograph.CodeOK, "") },
		func(c *conn) { c.accept(helloAck(203)); put(c.bulk(), upTo(t, 203, 203)); c.hold() },
	)
	w.run()
	w.applied(203)
	for i, want := range []heliograph.Code{heliograph.CodeHistoryGone, heliograph.CodeShuttingDown} {
		if r, ok := errors.AsType[*heliograph.RefusedError](w.lost(i + 1)); !ok || r.Code != want {
			t.Errorf("lost: %v, want %v", w.lost(i+1), want)
		}
	}
	if err := w.lost(3); !strings.Contains(err.Error(), "ended the connection") {
		t.Errorf("lost: %v", err)
	}
	if src.count() != 4 {
		t.Errorf("%d connections", src.count())
	}
}

func TestBadControl(t *testing.T) {
	for _, test := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"second answer", helloAck(1).AppendFrame(nil), "hello-ack"},
		{"hello", wire.Hello{}.AppendFrame(nil), "unexpected hello"},
		{"ack", wire.Ack{}.AppendFrame(nil), "unexpected ack"},
		{"entries", entries(t, 1, 1), "not expected"},
		{"voter", []byte{0x81, 0, 0, 0, 0}, "voter-class"},
		{"malformed heartbeat", []byte{byte(wire.TypeHeartbeat), 0, 0, 0, 1, 0xc0}, "malformed"},
		{"empty heartbeat", []byte{byte(wire.TypeHeartbeat), 0, 0, 0, 0}, "malformed"},
		{"oversize", []byte{byte(wire.TypeHeartbeat), 1, 0, 0, 0}, "larger than"},
		{"reply to nothing", wire.ReadIndexReply{ID: 7, LSN: 1}.AppendFrame(nil), "was not asked"},
		{"garbage", bytes.Repeat([]byte{0x5a}, 64), "not expected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.source(
				func(c *conn) { c.accept(helloAck(100)); _, _ = c.control.Write(test.frame); c.hold() },
				func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() },
			)
			w.run()
			if err := w.lost(1); !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
			w.applied(101)
		})
	}
}

func TestHeartbeats(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.cfg.Heartbeat = 5 * time.Millisecond
	next := make(chan struct{})
	src := w.source(
		func(c *conn) {
			c.silent = true
			c.accept(helloAck(100))
			c.send(wire.Heartbeat{HeadLSN: 100, CompactLSN: 90, UpstreamLSN: 130, StalenessMS: 1500, Why: "its etcd is away", Path: []string{"top", "source-1"}})
			<-next
			c.send(wire.Heartbeat{HeadLSN: 100, CompactLSN: 90, StalenessMS: -1, Path: []string{"top", nodeID, "source-1"}})
			c.hold()
		},
		func(c *conn) { c.hold() },
	)
	l := w.run()
	w.bell.until(t, "the replica hears of the compaction", func() bool {
		w.replica.mu.Lock()
		defer w.replica.mu.Unlock()
		return slices.Contains(w.replica.compacts, 90)
	})
	w.reporter.mu.Lock()
	if w.reporter.head != 130 || w.reporter.compacted != 90 || w.reporter.staleness != 1500*time.Millisecond || w.reporter.why != "its etcd is away" {
		t.Errorf("reported head %d, compacted %d, %v, %q", w.reporter.head, w.reporter.compacted, w.reporter.staleness, w.reporter.why)
	}
	w.reporter.mu.Unlock()
	if got := l.Path(); !slices.Equal(got, []string{"top", "source-1"}) {
		t.Errorf("path %v", got)
	}
	c := src.last(t)
	w.bell.until(t, "the source hears of the mirror", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.beats) > 2 && c.beats[2].HeadLSN == 100
	})
	close(next) // row 30: a cycle that comes about later
	if _, ok := errors.AsType[*link.ConfigurationError](w.lost(1)); !ok || !strings.Contains(w.lost(1).Error(), "cycle") {
		t.Errorf("lost: %v", w.lost(1))
	}
	<-c.Context().Done()
	if app, ok := errors.AsType[*quic.ApplicationError](context.Cause(c.Context())); !ok || app.ErrorCode != quic.ApplicationErrorCode(heliograph.CodeCycle) {
		t.Errorf("the source was told %v", context.Cause(c.Context()))
	}
}

// Row 20: a replica that fails is shown, and tried again.
func TestReplicaFails(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	full := errors.New("no space left on device")
	w.replica.applyErr = func(rev int64) error {
		if rev == 103 && full != nil {
			err := full
			full = nil
			return err
		}
		return nil
	}
	src := w.source(func(c *conn) {
		c.accept(helloAck(105))
		put(c.bulk(), upTo(t, c.hello.LastAppliedLSN+1, 105))
		c.hold()
	})
	w.run()
	w.applied(105)
	if err := w.lost(1); !strings.Contains(err.Error(), "apply revision 103: no space left") {
		t.Errorf("lost: %v", err)
	}
	if got := src.conn(1).hello.LastAppliedLSN; got != 102 {
		t.Errorf("resumed from %d", got)
	}
}

func TestStop(t *testing.T) {
	data := snapshotOf(42, 4*chunkBytes)
	for _, test := range []struct {
		name   string
		at     int64
		script func(w *world, c *conn)
	}{
		{"before the answer", 100, func(w *world, c *conn) {}},
		{"within a snapshot", 0, func(w *world, c *conn) {
			c.accept(snapshotAck(42, data))
			put(c.bulk(), chunks(42, data)[:2]...)
			w.bell.until(t, "a chunk arrives", func() bool {
				w.replica.mu.Lock()
				defer w.replica.mu.Unlock()
				return len(w.replica.received) > 0
			})
		}},
		{"between snapshot and entries", 0, func(w *world, c *conn) {
			c.accept(snapshotAck(42, data))
			c.giveSnapshot(42, data)
			w.bell.until(t, "it is installed", func() bool { return w.replica.Applied() == 42 })
		}},
		{"within an entries frame", 100, func(w *world, c *conn) {
			c.accept(helloAck(110))
			f := upTo(t, 102, 110)
			put(c.bulk(), upTo(t, 101, 101), f[:len(f)/2])
			w.bell.until(t, "the first arrives", func() bool { return w.replica.Applied() == 101 })
		}},
		{"idle", 100, func(w *world, c *conn) {
			c.accept(helloAck(100))
			w.bell.until(t, "it acknowledges", func() bool { _, n := c.lastAck(); return n > 0 })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.at > 0 {
				w.replica.at(test.at)
			}
			there := make(chan struct{})
			src := w.source(func(c *conn) { test.script(w, c); close(there); c.hold() })
			l := w.run()
			<-there
			why := errors.New("told to stop")
			l.stop(why)
			if err := l.wait(t); !errors.Is(err, why) {
				t.Errorf("Run: %v, want %v", err, why)
			}
			c := src.conn(0)
			<-c.Context().Done()
			if app, ok := errors.AsType[*quic.ApplicationError](context.Cause(c.Context())); !ok || app.ErrorCode != quic.ApplicationErrorCode(heliograph.CodeShuttingDown) {
				t.Errorf("the source was told %v", context.Cause(c.Context()))
			}
			if w.replica.receiving || len(w.reporter.losses()) != 0 {
				t.Errorf("receiving %v, losses %v", w.replica.receiving, w.reporter.losses())
			}
			if _, err := l.ReadIndex(t.Context()); !errors.Is(err, link.ErrDisconnected) {
				t.Errorf("read index after the end: %v", err)
			}
		})
	}
	t.Run("while nobody answers", func(t *testing.T) {
		w := newWorld(t)
		dead, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer dead.Close()
		w.cfg.Address.Hosts = []string{dead.LocalAddr().String()}
		l := w.run()
		w.bell.until(t, "it dials", func() bool { w.reporter.mu.Lock(); defer w.reporter.mu.Unlock(); return len(w.reporter.connecting) > 0 })
		l.stop(nil)
		if err := l.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestConfig(t *testing.T) {
	for _, test := range []struct {
		want string
		edit func(*link.Config)
	}{
		{"Address", func(c *link.Config) { c.Address.Hosts = nil }},
		{"NodeID", func(c *link.Config) { c.NodeID = strings.Repeat("x", 65) }},
		{"NodeID", func(c *link.Config) { c.NodeID = "" }},
		{"Replica", func(c *link.Config) { c.Replica = nil }},
		{"Reporter", func(c *link.Config) { c.Reporter = nil }},
		{"TLS", func(c *link.Config) { c.TLS = nil }},
		{"Mode", func(c *link.Config) { c.Mode = "never" }},
		{"AckDelay", func(c *link.Config) { c.AckDelay = -1 }},
		{"ConnectionWindow", func(c *link.Config) { c.ConnectionWindow = 1 << 20 }},
	} {
		w := newWorld(t)
		w.cfg.Address.Hosts = []string{"127.0.0.1:7400"}
		test.edit(&w.cfg)
		if _, err := link.New(w.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New: %v, want %q", err, test.want)
		}
	}
}
