package link_test

import (
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

func TestAcksAreCoalesced(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.cfg.AckDelay = 20 * time.Millisecond
	src := w.source(func(c *conn) {
		c.accept(helloAck(1100))
		s := c.bulk()
		for rev := int64(101); rev <= 1100; rev++ {
			put(s, upTo(t, rev, rev))
		}
		c.hold()
	})
	w.run()
	w.applied(1100)
	c := src.last(t)
	w.bell.until(t, "all is acknowledged", func() bool { a, _ := c.lastAck(); return a.DurableLSN == 1100 })
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.ackAt[len(c.ackAt)-1].Sub(c.ackAt[0])
	if most := int(took/w.cfg.AckDelay) + 2; len(c.acks) > most {
		t.Errorf("%d acks in %v", len(c.acks), took)
	}
	for i, a := range c.acks {
		if a.DurableLSN > a.AppliedLSN || i > 0 && (a.AppliedLSN < c.acks[i-1].AppliedLSN || a.DurableLSN < c.acks[i-1].DurableLSN || a == c.acks[i-1]) {
			t.Errorf("ack %d is %+v", i, a)
		}
	}
}

func TestAckWhenDurable(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.replica.lazy = true
	src := w.source(func(c *conn) { c.accept(helloAck(105)); put(c.bulk(), upTo(t, 101, 105)); c.hold() })
	w.run()
	c := src.last(t)
	w.bell.until(t, "what is applied is acknowledged", func() bool {
		a, _ := c.lastAck()
		return a == wire.Ack{AppliedLSN: 105, DurableLSN: 100}
	})
	w.replica.sync()
	w.bell.until(t, "what is durable is acknowledged", func() bool {
		a, _ := c.lastAck()
		return a == wire.Ack{AppliedLSN: 105, DurableLSN: 105}
	})
}

// Row 11: in sync mode nothing is acknowledged that a crash could take back.
func TestSyncMode(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.replica.lazy, w.replica.durable = true, 90
	w.cfg.Mode = heliograph.Sync
	src := w.source(func(c *conn) {
		c.accept(helloAck(109))
		s := c.bulk()
		for rev := int64(101); rev <= 107; rev += 3 {
			put(s, upTo(t, rev, rev+2))
			w.bell.until(t, "the frame is acknowledged", func() bool { a, _ := c.lastAck(); return a.DurableLSN == rev+2 })
		}
		c.hold()
	})
	w.run()
	w.applied(109)
	c := src.last(t)
	w.bell.until(t, "all is acknowledged", func() bool { a, _ := c.lastAck(); return a.DurableLSN == 109 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hello.LastAppliedLSN != 100 || w.replica.commits != 4 {
		t.Errorf("hello at %d after %d commits", c.hello.LastAppliedLSN, w.replica.commits)
	}
	for _, a := range c.acks {
		if a.AppliedLSN != a.DurableLSN {
			t.Errorf("ack %+v", a)
		}
	}
}
