package source_test

import (
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

// cutNet is a network whose packets to one address can be made to vanish.
type cutNet struct {
	simnet.PerfectRouter
	cut atomic.Pointer[net.UDPAddr]
}

func (n *cutNet) SendPacket(p simnet.Packet) error {
	if to := n.cut.Load(); to != nil && p.To.String() == to.String() {
		return nil
	}
	return n.PerfectRouter.SendPacket(p)
}

// story runs in fake time, over packets with 20 ms of delay.
func story(t *testing.T, tell func(t *testing.T, w *world, n *cutNet, dial func() *peer, mirror *net.UDPAddr)) {
	synctest.Test(t, func(t *testing.T) {
		router := &cutNet{}
		sim := &simnet.Simnet{Router: router}
		at := func(last byte) *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(10, 0, 0, last), Port: 7400} }
		link := simnet.NodeBiDiLinkSettings{Latency: 20 * time.Millisecond}
		server, client := sim.NewEndpoint(at(1), link), sim.NewEndpoint(at(2), link)
		if err := sim.Start(); err != nil {
			t.Fatal(err)
		}
		defer sim.Close()
		w := startOn(t, server, newMemory(10), func(c *source.Config) { c.Silence = 0 })
		dial := func() *peer {
			p, err := w.dialFrom(client, &quic.Config{KeepAlivePeriod: 5 * time.Second}, w.ca.issue(time.Hour, uri(heliograph.RoleMirror, "m1")))
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		tell(t, w, router, dial, at(2))
		w.stop()
	})
}

// TestStoryBlackhole: when nothing reaches the source any more, it knows within
// ten seconds and gives the place up (fault 16).
func TestStoryBlackhole(t *testing.T) {
	story(t, func(t *testing.T, w *world, n *cutNet, dial func() *peer, _ *net.UDPAddr) {
		p := dial()
		p.follow(5)
		p.take(w.replica, 10)
		n.cut.Store(w.addr.(*net.UDPAddr))
		began := time.Now()
		for len(w.server.Downstreams()) > 0 {
			time.Sleep(100 * time.Millisecond) // fake time
		}
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("noticed after %v", took)
		}
	})
}

// TestStoryUnheard: a mirror that hears the source and is not heard is told so with
// every heartbeat (fault 16).
func TestStoryUnheard(t *testing.T) {
	story(t, func(t *testing.T, w *world, n *cutNet, dial func() *peer, _ *net.UDPAddr) {
		p := dial()
		p.follow(10)
		unheard := func() time.Duration {
			h, err := wire.DecodeHeartbeat(p.await(wire.TypeHeartbeat))
			if err != nil {
				t.Fatal(err)
			}
			p.say(wire.Heartbeat{HeadLSN: 10, StalenessMS: -1})
			return time.Duration(h.UnheardMS) * time.Millisecond
		}
		for range 100 {
			if d := unheard(); d > 600*time.Millisecond {
				t.Fatalf("unheard for %v, while a frame comes every half second", d)
			}
		}
		n.cut.Store(w.addr.(*net.UDPAddr))
		began := time.Now()
		for unheard() < 4*time.Second {
		}
		if took := time.Since(began); took < 3500*time.Millisecond || took > 4600*time.Millisecond {
			t.Errorf("said after %v", took)
		}
	})
}

// TestStoryIdle: an idle source and an idle mirror stay together for hours, with
// a heartbeat each way every half second.
func TestStoryIdle(t *testing.T) {
	story(t, func(t *testing.T, w *world, _ *cutNet, dial func() *peer, _ *net.UDPAddr) {
		p := dial()
		p.follow(10)
		const beats = 2 * 60 * 10
		began := time.Now()
		for range beats {
			p.await(wire.TypeHeartbeat)
			p.say(wire.Heartbeat{HeadLSN: 10, StalenessMS: -1})
		}
		if took := time.Since(began); took < 9*time.Minute || took > 11*time.Minute {
			t.Errorf("%d heartbeats in %v", beats, took)
		}
		w.replica.put(1, 100)
		p.take(w.replica, 11)
		if lag := time.Since(began) - 10*time.Minute; lag > time.Second {
			t.Errorf("a revision took %v", lag)
		}
	})
}

// TestStoryLatency: with heartbeats as the only traffic the live path waits for no
// timer: a revision arrives after exactly the network's delay.
func TestStoryLatency(t *testing.T) {
	story(t, func(t *testing.T, w *world, _ *cutNet, dial func() *peer, _ *net.UDPAddr) {
		p := dial()
		p.follow(10)
		w.replica.put(1, 100)
		p.take(w.replica, 11) // the stream is open now
		for rev := int64(12); rev < 40; rev++ {
			began := time.Now()
			w.replica.put(1, 100)
			p.take(w.replica, rev)
			if took := time.Since(began); took != 20*time.Millisecond {
				t.Fatalf("revision %d took %v over a network with 20ms", rev, took)
			}
			p.ack(rev)
			time.Sleep(50 * time.Millisecond) // fake time
		}
	})
}

// TestStoryHalfCut: a mirror that is heard but hears nothing leaves when its own
// transport gives up, and then its place is free (fault 16).
func TestStoryHalfCut(t *testing.T) {
	story(t, func(t *testing.T, w *world, n *cutNet, dial func() *peer, mirror *net.UDPAddr) {
		p := dial()
		p.follow(10)
		n.cut.Store(mirror)
		began := time.Now()
		for p.conn.Context().Err() == nil {
			p.say(wire.Heartbeat{HeadLSN: 10, StalenessMS: -1})
			time.Sleep(500 * time.Millisecond) // fake time
		}
		for len(w.server.Downstreams()) > 0 {
			time.Sleep(500 * time.Millisecond) // fake time
		}
		if took := time.Since(began); took < 15*time.Second || took > 26*time.Second {
			t.Errorf("noticed after %v", took)
		}
	})
}
