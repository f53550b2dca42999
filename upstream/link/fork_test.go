package link_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// fork is where a cluster that was promoted left origin.
func fork(rev int64) heliograph.Fork {
	return heliograph.Fork{Origin: origin.String(), Revision: rev, Cluster: "prod-us", Database: "default", EtcdID: 0x55, Token: "t"}
}

// forkedAck is the answer of that cluster.
func forkedAck(head, left int64) wire.HelloAck {
	f := fork(left)
	ack := helloAck(head)
	ack.Origin, ack.Forks = f.Heir().String(), []heliograph.Fork{f}
	return ack
}

// The replica is told of the fork before it is brought a record, and the node when
// all is proven.
func TestFork(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	var joined atomic.Int64
	w.cfg.Joined = func() {
		joined.Add(1)
		w.replica.mu.Lock()
		defer w.replica.mu.Unlock()
		if len(w.replica.adopted) != 1 || len(w.replica.batches) > 0 {
			t.Error("joined before the fork was adopted, or after records came")
		}
	}
	w.replica.applyErr = func(int64) error {
		if len(w.replica.adopted) != 1 {
			return errors.New("a record came before the fork")
		}
		return nil
	}
	w.source(func(c *conn) {
		c.accept(forkedAck(110, 105))
		put(c.bulk(), upTo(t, 101, 110))
		c.hold()
	})
	run := w.run()
	w.bell.until(t, "all is applied", func() bool { return w.replica.Applied() == 110 })
	run.stop(nil)
	run.wait(t)
	if got := w.replica.adopted; len(got) != 1 || got[0].Origin != fork(105).Heir() || len(got[0].Forks) != 1 || got[0].Forks[0].Revision != 105 {
		t.Errorf("adopted %+v", got)
	}
	if n := joined.Load(); n != 1 {
		t.Errorf("joined %d times", n)
	}
}

// A mirror does not take a source's word for it: what the list says must fit what
// it holds itself.
func TestForkIsChecked(t *testing.T) {
	stranger := forkedAck(110, 105)
	stranger.Forks[0].Origin = "prod-ap/default@77"
	for name, test := range map[string]struct {
		ack   wire.HelloAck
		adopt error
		want  string
	}{
		"passed":         {forkedAck(110, 99), nil, "left that at revision 99"},
		"another's fork": {stranger, nil, "no promotion is known"},
		"replica knows":  {forkedAck(110, 105), &heliograph.DivergedError{Rev: 3, Why: "its own view"}, "its own view"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.replica.adoptErr = test.adopt
			w.cfg.Joined = func() { t.Error("joined") }
			w.source(func(c *conn) { c.accept(test.ack); put(c.bulk(), upTo(t, 101, 110)); c.hold() })
			err := w.run().wait(t)
			d, ok := errors.AsType[*heliograph.DivergedError](err)
			if !ok || !strings.Contains(d.Why, test.want) {
				t.Errorf("Run: %v, want %q", err, test.want)
			}
			if w.replica.Applied() != 100 || len(w.replica.adopted) != 0 {
				t.Errorf("applied %d, adopted %v", w.replica.Applied(), w.replica.adopted)
			}
		})
	}
}

// A snapshot over a fork is the replica's to judge: it holds the forks itself.
func TestForkWithSnapshot(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	joined := make(chan heliograph.Origin, 1)
	w.cfg.Joined = func() { joined <- w.replica.Origin() }
	data := snapshotOf(500, 3*chunkBytes)
	w.source(func(c *conn) {
		ack := forkedAck(500, 105)
		ack.SnapshotLSN, ack.SnapshotBytesTotal = 500, uint64(len(data))
		c.accept(ack)
		c.giveSnapshot(500, data)
		c.hold()
	})
	run := w.run()
	if got := <-joined; got != fork(105).Heir() {
		t.Errorf("joined with %s", got)
	}
	run.stop(nil)
	run.wait(t)
	if len(w.replica.adopted) > 0 || w.replica.installs != 1 {
		t.Errorf("adopted %v, %d installed", w.replica.adopted, w.replica.installs)
	}
}

// Who points a mirror of a promoted cluster back at the old one is told why that
// cannot be: the old one does not know.
func TestForkIsNoWayBack(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	left := fork(90)
	left.Cluster = "prod-eu"
	w.replica.origin = left.Heir()
	w.replica.lineage = heliograph.Lineage{Origin: left.Heir(), Forks: []heliograph.Fork{left}}
	w.source(func(c *conn) { c.refuse(heliograph.CodeDiverged, "the mirror holds another") })
	err := w.run().wait(t)
	if err == nil || !strings.Contains(err.Error(), "left the history of prod-us/default@abc at revision 90, when prod-eu was promoted") {
		t.Errorf("Run: %v", err)
	}
}

// A source whose history the mirror's own has left is behind: the next address is
// tried, and it again later; it is another history to who is pointed at it on purpose.
func TestForkNotFollowedYet(t *testing.T) {
	left := fork(90)
	left.Cluster = "prod-eu"
	heir := left.Heir()
	// at brings a world's replica to the heir's revision 100.
	at := func(w *world) *world {
		w.replica.at(100).origin = heir
		w.cfg.Left = heliograph.Lineage{Origin: heir, Forks: []heliograph.Fork{left}}.LeftAt
		return w
	}
	refusal := wire.HelloAck{
		ErrorCode: heliograph.CodeDiverged, ErrorDetail: "no promotion is known", SourceClusterID: "prod-us", SnapshotLSN: wire.NoSnapshot, Origin: origin.String(),
	}
	behind := func(c *conn) { c.send(refusal); c.leave(heliograph.CodeDiverged, "") }
	follow := func(c *conn) {
		ack := helloAck(101)
		ack.Origin = heir.String()
		c.accept(ack)
		put(c.bulk(), upTo(t, 101, 101))
		c.hold()
	}
	t.Run("goes over", func(t *testing.T) {
		w := at(newWorld(t))
		w.source(behind, behind, follow)
		w.run()
		w.applied(101)
		for n := 1; n <= 2; n++ {
			if err := w.lost(n); !strings.Contains(err.Error(), "has not followed the promotion of prod-eu yet: it holds prod-us/default@abc, which this mirror's history left at revision 90") {
				t.Errorf("lost: %v", err)
			}
		}
	})
	t.Run("next address", func(t *testing.T) {
		w := at(newWorld(t))
		first := w.source(behind)
		w.source(follow)
		w.run()
		w.applied(101)
		if n := first.count(); n != 1 {
			t.Errorf("asked the first %d times", n)
		}
	})
	t.Run("on purpose", func(t *testing.T) {
		w := at(newWorld(t))
		w.cfg.Left = func(string) (heliograph.Fork, bool) { return heliograph.Fork{}, false }
		w.source(behind)
		if d, ok := errors.AsType[*heliograph.DivergedError](w.run().wait(t)); !ok || !strings.Contains(d.Why, "no promotion is known") {
			t.Errorf("Run: %v", d)
		}
	})
	t.Run("unknown to the mirror", func(t *testing.T) {
		w := at(newWorld(t))
		refusal.Origin = "prod-us/default@77"
		w.source(behind)
		if d, ok := errors.AsType[*heliograph.DivergedError](w.run().wait(t)); !ok {
			t.Errorf("Run: %v", d)
		}
	})
	// Which has dropped its replica, and the source knows nothing of it.
	t.Run("holds nothing", func(t *testing.T) {
		w := at(newWorld(t))
		w.replica.origin, w.replica.applied = heliograph.Origin{}, 0
		data := snapshotOf(500, chunkBytes)
		w.source(func(c *conn) { c.accept(snapshotAck(50, data)); c.hold() }, func(c *conn) {
			ack := snapshotAck(500, data)
			ack.Origin = heir.String()
			c.accept(ack)
			c.giveSnapshot(500, data)
			c.hold()
		})
		w.run()
		w.applied(500)
		if got := w.replica.Origin(); got != heir || w.replica.installs != 1 {
			t.Errorf("holds %s after %d snapshots", got, w.replica.installs)
		}
	})
}
