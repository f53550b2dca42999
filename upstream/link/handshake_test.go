package link_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

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
		alone  bool // there is no other address
		want   string
	}{
		{"other origin", other, nil, true, "the mirror holds prod-us/default@abc and the source prod-us/default@def, and no promotion is known"},
		{"no origin", func(c *conn) {
			ack := helloAck(100)
			ack.Origin = ""
			c.accept(ack)
			c.hold()
		}, nil, true, "the source prod-us/default@0,"},
		{"refused", func(c *conn) { c.refuse(heliograph.CodeDiverged, "you are ahead of me") }, nil, true, "you are ahead of me"},
		{"goodbye", func(c *conn) { c.accept(helloAck(100)); c.goodbye(heliograph.CodeDiverged, "") }, nil, false, "another history"},
		{"replica", func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() },
			&heliograph.DivergedError{Rev: 101, Why: "the bytes differ"}, false, "the bytes differ"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.replica.applyErr = func(int64) error { return test.apply }
			w.source(test.script)
			if !test.alone {
				w.source(func(*conn) { t.Error("another address was tried") })
			}
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
