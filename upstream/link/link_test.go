package link_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"reflect"
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
	if got, want := c.hello, (wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", ProtocolVersion: 1, NodeID: nodeID,
		Features: []string{wire.FeatureLeases}}); !reflect.DeepEqual(got, want) {
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

// The replica is changed by one goroutine at a time, and one that takes long
// keeps nobody from hearing the source.
func TestCompactionWaitsForApply(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.replica.gate = make(chan struct{})
	src := w.source(func(c *conn) { c.silent = true; c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() })
	w.run()
	c := src.last(t)
	w.bell.until(t, "the entries arrive", func() bool { w.reporter.mu.Lock(); defer w.reporter.mu.Unlock(); return w.reporter.head == 101 })
	for rev := int64(102); rev < 110; rev++ {
		c.send(wire.Heartbeat{HeadLSN: rev, CompactLSN: 99, StalenessMS: -1})
		w.bell.until(t, "the heartbeat is heard", func() bool { w.reporter.mu.Lock(); defer w.reporter.mu.Unlock(); return w.reporter.head == rev })
	}
	close(w.replica.gate)
	w.applied(101)
	w.bell.until(t, "the compaction is passed on", func() bool {
		w.replica.mu.Lock()
		defer w.replica.mu.Unlock()
		return slices.Contains(w.replica.compacts, 99)
	})
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
	if w.reporter.heardStale != 1500*time.Millisecond {
		t.Errorf("the head was reported before how old it may be: %v", w.reporter.heardStale)
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
