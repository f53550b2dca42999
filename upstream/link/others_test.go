package link_test

import (
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// answering is a source at revision 100 that does not follow its own upstream for why,
// and answers every question with reply.
func answering(why string, reply wire.ReadIndexReply) script { return answeringAt(100, 0, why, reply) }

// answeringAt is one at another revision, which answers once it has had that many
// heartbeats.
func answeringAt(head int64, beats int, why string, reply wire.ReadIndexReply) script {
	return func(c *conn) {
		c.silent = true
		c.accept(helloAck(head))
		heard := func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.beats) >= beats }
		for answered := 0; c.Context().Err() == nil; time.Sleep(5 * time.Millisecond) {
			c.send(wire.Heartbeat{HeadLSN: head, StalenessMS: -1, Why: why})
			if !heard() {
				continue
			}
			for _, id := range c.asked()[answered:] {
				reply.ID = id
				c.send(reply)
				answered++
			}
		}
	}
}

var (
	lostEtcd = wire.ReadIndexReply{ErrorDetail: "no answer from etcd", Unanswered: true}
	hasEtcd  = wire.ReadIndexReply{LSN: 107}
)

// A source that has no answer from its etcd does not speak for the others.
func TestReadIndexAsksTheOthers(t *testing.T) {
	for _, test := range []struct {
		name   string
		other  script // nil: nobody is there
		rev    int64
		nobody bool
		says   string // the error
		moves  bool
	}{
		{"that has the etcd", answering("", hasEtcd), 107, false, "", true},
		{"that has the etcd and is not up to date", answering("etcd is slow", hasEtcd), 107, false, "", false},
		{"that has the etcd and is behind", answeringAt(99, 0, "", hasEtcd), 107, false, "", false},
		{"that takes its time", answeringAt(100, 3, "", hasEtcd), 107, false, "", true},
		{"whose etcd has less", answering("", wire.ReadIndexReply{LSN: 99}), 0, false, "its etcd is at revision 99, and this mirror at 100", false},
		{"that was promoted", func(c *conn) {
			c.silent = true
			c.accept(forkedAck(100, 100))
			c.hold()
		}, 0, false, "was promoted from", false},
		{"that has lost it, too", answering("etcd is gone", lostEtcd), 0, true, "no answer from etcd; and ", false},
		{"that cannot ask", answering("it is diverged", wire.ReadIndexReply{ErrorDetail: "it asks nobody"}), 0, false, "it asks nobody", false},
		{"that is of another history", func(c *conn) { c.refuse(heliograph.CodeDiverged, "other records") }, 0, false, "other records", false},
		{"that refuses", func(c *conn) { c.refuse(heliograph.CodeOverloaded, "64 mirrors are here") }, 0, false, "64 mirrors are here", false},
		{"that ends the session", func(c *conn) { c.accept(helloAck(100)); c.goodbye(heliograph.CodeShuttingDown, "going home") }, 0, false, "going home", false},
		{"that falls silent", func(c *conn) { c.silent = true; c.accept(helloAck(100)); c.hold() }, 0, false, "no answer from ", false},
		{"where nobody is", nil, 0, true, "no answer from ", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.cfg.Silence, w.cfg.DialTimeout, w.cfg.Stall = 300*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond
			w.source(answering("", lostEtcd))
			var src *source
			if test.other != nil {
				src = w.source(test.other)
			} else {
				dead, err := net.ListenPacket("udp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer dead.Close()
				w.cfg.Address.Hosts = append(w.cfg.Address.Hosts, dead.LocalAddr().String())
			}
			l := w.run()
			w.bell.until(t, "it follows", func() bool { return len(w.reporter.peers()) == 1 })
			time.Sleep(2 * w.cfg.Stall) // one that has just begun is not left
			rev, err := l.ReadIndex(t.Context())
			if rev != test.rev || (err == nil) != (test.says == "") || unanswered(err) != test.nobody {
				t.Errorf("revision %d, %v", rev, err)
			}
			if err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %q", err, test.says)
			}
			if !test.moves {
				if peers := w.reporter.peers(); len(peers) != 1 || len(w.reporter.losses()) > 0 {
					t.Errorf("it has followed %v", peers)
				}
				return
			}
			w.bell.until(t, "it follows the other", func() bool { return len(w.reporter.peers()) == 2 })
			if h := src.conn(0).hello; !h.Asks || h.LastAppliedLSN != 100 || len(h.Features) > 0 {
				t.Errorf("it was asked with %+v", h)
			}
			if h := src.conn(1).hello; h.Asks {
				t.Errorf("it is followed with %+v", h)
			}
			if peers := w.reporter.peers(); peers[1] != w.cfg.Address.Hosts[1] {
				t.Errorf("it has followed %v", peers)
			}
			if err := w.lost(1); !strings.Contains(err.Error(), "no answer from etcd), and "+w.cfg.Address.Hosts[1]+" does: going over to it") {
				t.Error(err)
			}
			// And goes on asking it.
			if rev, err := l.ReadIndex(t.Context()); rev != 107 || err != nil {
				t.Errorf("revision %d, %v", rev, err)
			}
		})
	}
}

// Many who ask at once do not bring the others a connection each.
func TestReadIndexAsksTheOthersOnce(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.source(answering("etcd is lost", lostEtcd))
	second := w.source(answering("etcd is lost", lostEtcd))
	l := w.run()
	w.bell.until(t, "it follows", func() bool { return len(w.reporter.peers()) == 1 })
	var work sync.WaitGroup
	const most = 200
	for range most {
		work.Go(func() {
			if _, err := l.ReadIndex(t.Context()); !unanswered(err) {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if n := second.count(); n < 1 || n > most/4 {
		t.Errorf("%d questions, %d connections", most, n)
	}
}

// A source that does not follow its own upstream is left for one that does, and kept
// while there is none.
func TestLeavesASourceThatStrays(t *testing.T) {
	for _, test := range []struct {
		name  string
		other script
		moves bool
	}{
		{"another follows", answering("", hasEtcd), true},
		{"another does not", answering("etcd is slow", hasEtcd), false},
		{"another is behind", answeringAt(99, 0, "", hasEtcd), false},
		{"another has lost its etcd", answering("", lostEtcd), false},
		{"another refuses", func(c *conn) { c.refuse(heliograph.CodeNotReady, "no snapshot") }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.cfg.Stall = 50 * time.Millisecond
			w.source(answering("etcd is lost", hasEtcd))
			second := w.source(test.other)
			w.run()
			w.bell.until(t, "the other was asked twice, or is followed", func() bool { return second.count() >= 3 || len(w.reporter.peers()) > 1 })
			peers := w.reporter.peers()
			if moved := len(peers) > 1; moved != test.moves || moved && peers[1] != second.addr {
				t.Errorf("it has followed %v", peers)
			}
			if test.moves && !strings.Contains(w.lost(1).Error(), "does not follow its own upstream (etcd is lost), and "+second.addr+" does") {
				t.Error(w.lost(1))
			}
		})
	}
	t.Run("the third follows", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.Stall = 50 * time.Millisecond
		w.source(answering("etcd is lost", hasEtcd))
		w.source(answering("etcd is slow", hasEtcd))
		third := w.source(answering("", hasEtcd))
		w.run()
		w.bell.until(t, "it follows another", func() bool { return len(w.reporter.peers()) > 1 })
		time.Sleep(300 * time.Millisecond)
		if peers := w.reporter.peers(); len(peers) != 2 || peers[1] != third.addr {
			t.Errorf("it has followed %v, want the first and then the third", peers)
		}
	})
	t.Run("not while it sends a snapshot", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.Stall = 20 * time.Millisecond
		data := snapshotOf(500, 3*chunkBytes)
		w.source(func(c *conn) {
			c.silent = true
			c.accept(snapshotAck(500, data))
			s := c.bulk()
			frames := chunks(500, data)
			put(s, frames[0])
			for range 30 {
				c.send(wire.Heartbeat{HeadLSN: 500, StalenessMS: -1, Why: "etcd is lost"})
				time.Sleep(10 * time.Millisecond)
			}
			put(s, frames[1:]...)
			if s != nil {
				_ = s.Close()
			}
			for c.Context().Err() == nil {
				c.send(wire.Heartbeat{HeadLSN: 500, StalenessMS: -1, Why: "etcd is lost"})
				time.Sleep(10 * time.Millisecond)
			}
		})
		second := w.source(answeringAt(500, 0, "", wire.ReadIndexReply{LSN: 507}))
		w.run()
		w.bell.until(t, "it follows the other", func() bool { return len(w.reporter.peers()) > 1 })
		if h := second.conn(0).hello; h.LastAppliedLSN != 500 {
			t.Errorf("it has asked at revision %d, before it had the snapshot", h.LastAppliedLSN)
		}
		if w.replica.aborts > 0 || w.replica.installs != 1 {
			t.Errorf("%d snapshots aborted, %d installed", w.replica.aborts, w.replica.installs)
		}
	})
	t.Run("not a source that follows", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.Stall = 20 * time.Millisecond
		w.source(answering("", hasEtcd))
		second := w.source(answering("", hasEtcd))
		w.run()
		time.Sleep(300 * time.Millisecond)
		if second.count() > 0 || len(w.reporter.losses()) > 0 {
			t.Errorf("%d connections to the other, %v", second.count(), errors.Join(w.reporter.losses()...))
		}
	})
}
