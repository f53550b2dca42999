package link_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// network is two machines in fake time, 20 ms apart, with a cut for each
// direction.
type network struct {
	simnet.PerfectRouter
	source, mirror     *net.UDPAddr
	toSource, toMirror atomic.Bool  // cut
	late               atomic.Int64 // nanoseconds more to the source
}

func (n *network) SendPacket(p simnet.Packet) error {
	to := p.To.(*net.UDPAddr)
	if to.IP.Equal(n.source.IP) && n.toSource.Load() || to.IP.Equal(n.mirror.IP) && n.toMirror.Load() {
		return nil
	}
	if late := n.late.Load(); late > 0 && to.IP.Equal(n.source.IP) {
		time.AfterFunc(time.Duration(late), func() { _ = n.PerfectRouter.SendPacket(p) })
		return nil
	}
	return n.PerfectRouter.SendPacket(p)
}

// kept is a socket that outlives the connections over it, as the simulated
// machine has only one.
type kept struct{ *simnet.SimConn }

func (kept) Close() error { return nil }

// simulated is a world with the real waits, in fake time.
func simulated(t *testing.T, scripts ...script) (*world, *source, *network) {
	t.Helper()
	return simulatedFor(t, 24*time.Hour, scripts...)
}

// simulatedFor is simulated with a source whose certificate ends after a while.
func simulatedFor(t *testing.T, lifetime time.Duration, scripts ...script) (*world, *source, *network) {
	t.Helper()
	w := plainWorld(t)
	w.replica.at(100)
	n := &network{
		source: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1).To4(), Port: 7400},
		mirror: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2).To4(), Port: 1000},
	}
	machines := &simnet.Simnet{Router: n}
	half := simnet.NodeBiDiLinkSettings{Latency: 10 * time.Millisecond}
	here, there := machines.NewEndpoint(n.mirror, half), machines.NewEndpoint(n.source, half)
	if err := machines.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = here.Close()
		_ = there.Close()
		if err := machines.Close(); err != nil {
			t.Error(err)
		}
	})
	w.cfg.Listen = func() (net.PacketConn, error) { return kept{here}, nil }
	src := w.sourceOn(there, w.pki.server(t, "prod-us", lifetime), scripts...)
	return w, src, n
}

// near checks a duration, within a second.
func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-time.Second || got > want+time.Second {
		t.Errorf("%s took %v, want about %v", what, got, want)
	}
}

func idle(c *conn) { c.accept(helloAck(100)); c.hold() }

// Row 16: a source that falls silent is left within five seconds, and followed
// again when it speaks.
func TestSilence(t *testing.T) {
	for _, test := range []struct {
		name               string
		toSource, toMirror bool
	}{
		{"both ways", true, true},
		{"from the source", false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, src, n := simulated(t, idle)
				w.run()
				src.last(t)
				time.Sleep(10 * time.Minute) // idle is not silence
				if len(w.reporter.losses()) > 0 {
					t.Fatalf("lost while idle: %v", w.reporter.losses())
				}
				began := time.Now()
				n.toSource.Store(test.toSource)
				n.toMirror.Store(test.toMirror)
				if err := w.lost(1); !strings.Contains(err.Error(), "nothing heard from 10.0.0.1:7400 for 5") {
					t.Errorf("lost: %v", err)
				}
				near(t, "noticing", time.Since(began), 5*time.Second)
				time.Sleep(time.Minute)
				n.toSource.Store(false)
				n.toMirror.Store(false)
				seen := src.count()
				began = time.Now()
				w.bell.until(t, "it is back", func() bool { return src.count() > seen })
				if d := time.Since(began); d > 41*time.Second { // cap and one dial
					t.Errorf("back after %v", d)
				}
			})
		})
	}
}

// Row 16, the other direction: the mirror hears the source but is not heard. The
// source says so in its heartbeats, and the mirror does not wait for more.
func TestOneWaySilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, n := simulated(t, func(c *conn) {
			c.silent = true
			c.accept(helloAck(100))
			for at, beats := time.Now(), 0; c.Context().Err() == nil; time.Sleep(500 * time.Millisecond) {
				c.mu.Lock()
				if len(c.beats) > beats {
					at, beats = time.Now(), len(c.beats)
				}
				c.mu.Unlock()
				c.send(wire.Heartbeat{HeadLSN: 100, StalenessMS: -1, UnheardMS: time.Since(at).Milliseconds()})
			}
		})
		w.run()
		src.last(t)
		time.Sleep(time.Minute)
		if len(w.reporter.losses()) > 0 {
			t.Fatalf("lost while heard: %v", w.reporter.losses())
		}
		began := time.Now()
		n.toSource.Store(true)
		if err := w.lost(1); !strings.Contains(err.Error(), "10.0.0.1:7400 has heard nothing from us for 4") {
			t.Errorf("lost: %v", err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("noticed after %v", d)
		}
		n.toSource.Store(false)
		seen := src.count()
		w.bell.until(t, "it is back", func() bool { return src.count() > seen })
	})
}

// A source that does not say when it heard from the mirror ends the session, and
// its end reaches the mirror.
func TestOneWaySilenceUnsaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, n := simulated(t, func(c *conn) {
			c.accept(helloAck(100))
			var heard int
			for {
				time.Sleep(10 * time.Second)
				c.mu.Lock()
				now := len(c.beats)
				c.mu.Unlock()
				if now == heard {
					_ = c.CloseWithError(0x1b, "nothing heard from the mirror for 10s")
					return
				}
				heard = now
			}
		})
		w.run()
		src.last(t)
		time.Sleep(time.Minute)
		began := time.Now()
		n.toSource.Store(true)
		err := w.lost(1)
		if d := time.Since(began); d > 25*time.Second {
			t.Errorf("noticed after %v", d)
		}
		if r, ok := errors.AsType[*heliograph.RefusedError](err); ok && r.Code != heliograph.CodeTimeout {
			t.Errorf("lost: %v", err)
		}
		n.toSource.Store(false)
		seen := src.count()
		w.bell.until(t, "it is back", func() bool { return src.count() > seen })
	})
}

// Row 15: control lives, bulk does not.
func TestBulkStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, _ := simulated(t,
			func(c *conn) { c.accept(helloAck(200)); put(c.bulk(), upTo(t, 101, 110)); c.hold() },
			idle,
		)
		w.run()
		began := time.Now()
		if err := w.lost(1); !strings.Contains(err.Error(), "is at revision 200 but sent no entries for 10") {
			t.Errorf("lost: %v", err)
		}
		near(t, "noticing", time.Since(began), 10500*time.Millisecond)
		w.bell.until(t, "it reconnects", func() bool { return src.count() == 2 })
		if got := src.conn(1).hello.LastAppliedLSN; got != 110 {
			t.Errorf("resumed from %d", got)
		}
	})
}

// A replica that takes its time is not a source that stalls.
func TestSlowReplicaIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := simulated(t, func(c *conn) {
			c.accept(helloAck(110))
			put(c.bulk(), upTo(t, 101, 110))
			c.hold()
		})
		w.replica.gate = make(chan struct{})
		w.run()
		time.Sleep(3 * time.Minute)
		if got := w.reporter.losses(); len(got) > 0 {
			t.Errorf("lost: %v", got)
		}
		close(w.replica.gate)
		w.applied(110)
	})
}

func TestSnapshotStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := snapshotOf(42, 4*chunkBytes)
		w, _, _ := simulated(t,
			func(c *conn) { c.accept(snapshotAck(42, data)); put(c.bulk(), chunks(42, data)[:2]...); c.hold() },
			func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() },
		)
		w.replica.origin, w.replica.applied, w.replica.durable = heliograph.Origin{}, 0, 0
		began := time.Now()
		w.run()
		if err := w.lost(1); !strings.Contains(err.Error(), "nothing more of its snapshot for 30") {
			t.Errorf("lost: %v", err)
		}
		near(t, "noticing", time.Since(began), 30*time.Second)
		w.applied(42)
	})
}

// Row 18: a connection does not outlive the source's certificate.
func TestCertificateExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, _ := simulatedFor(t, 10*time.Minute, idle)
		w.run()
		src.last(t)
		began := time.Now()
		time.Sleep(11 * time.Minute)
		if err := w.lost(1); !strings.Contains(err.Error(), "the certificate of 10.0.0.1:7400 expired") {
			t.Errorf("lost: %v", err)
		}
		w.reporter.mu.Lock()
		defer w.reporter.mu.Unlock()
		near(t, "the connection", w.reporter.lostAt[0].Sub(began), 10*time.Minute)
	})
}

// Every code is shown at once, and retried as its kind asks for.
func TestRetryClasses(t *testing.T) {
	const slow, soon = 30 * time.Second, 600 * time.Millisecond
	for code, least := range map[heliograph.Code]time.Duration{
		heliograph.CodeClusterMismatch: slow,
		heliograph.CodeObserverOnly:    slow,
		heliograph.CodeBadVersion:      slow,
		heliograph.CodeUnknownDatabase: slow,
		heliograph.CodeSelfMirror:      slow,
		heliograph.CodeNotAuthorized:   slow,
		heliograph.CodeCycle:           slow,
		heliograph.CodeOverloaded:      0,
		heliograph.CodeNotReady:        0,
		heliograph.CodeShuttingDown:    0,
		heliograph.CodeHistoryGone:     0,
		heliograph.CodeReset:           0,
		heliograph.CodeProtocol:        0,
		heliograph.CodeTimeout:         0,
	} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, src, _ := simulated(t, func(c *conn) { c.refuse(code, "because") })
				began := time.Now()
				w.run()
				if r, ok := errors.AsType[*heliograph.RefusedError](w.lost(1)); !ok || r.Code != code || r.Detail != "because" {
					t.Errorf("lost: %v", w.lost(1))
				}
				if d := time.Since(began); d > time.Second {
					t.Errorf("shown after %v", d)
				}
				w.bell.until(t, "it comes again", func() bool { return src.count() == 2 })
				src.mu.Lock()
				wait := src.at[1].Sub(src.at[0])
				src.mu.Unlock()
				if least == slow && (wait < slow || wait > slow*3/2+time.Second) || least == 0 && wait > soon {
					t.Errorf("came again after %v", wait)
				}
			})
		})
	}
}

// Row 22: a source that is gone for an hour is not hammered.
func TestBackoffIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, _ := simulated(t, func(c *conn) { c.refuse(heliograph.CodeOverloaded, "") })
		w.run()
		time.Sleep(time.Hour)
		// Full jitter up to 30 s: on average one try in 15 s.
		if n := src.count(); n < 150 || n > 400 {
			t.Errorf("%d tries within an hour", n)
		}
	})
}

// Where nobody is there, whoever asks is told so after half a second and three round
// trips, and the tries that are as long as a dial may take go on.
func TestNobodyIsTriedAgainQuickly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, n := simulated(t, idle)
		w.cfg.ReadTimeout = time.Minute
		l := w.run()
		src.last(t)
		n.toSource.Store(true)
		n.toMirror.Store(true)
		time.Sleep(time.Minute)
		for range 100 {
			// Who asks more often waits now and then for a try that has its full time.
			time.Sleep(10*time.Second + time.Duration(rand.Int64N(int64(time.Minute))))
			began := time.Now()
			if _, err := l.ReadIndex(t.Context()); !unanswered(err) {
				t.Fatal(err)
			}
			if d := time.Since(began); d < 600*time.Millisecond || d > 1700*time.Millisecond {
				t.Errorf("told after %v", d)
			}
		}
	})
}

// A source that takes longer than a second to answer is followed, however many ask
// meanwhile.
func TestQuickTriesDoNotKeepASlowSourceAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, n := simulated(t, idle)
		l := w.run()
		src.last(t)
		n.toSource.Store(true)
		n.toMirror.Store(true)
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		for range 20 {
			work.Go(func() {
				for ctx.Err() == nil {
					one, done := context.WithTimeout(ctx, time.Duration(rand.Int64N(int64(3*time.Second))))
					_, _ = l.ReadIndex(one)
					done()
				}
			})
		}
		time.Sleep(time.Minute)
		n.late.Store(int64(1500 * time.Millisecond))
		n.toSource.Store(false)
		n.toMirror.Store(false)
		seen, began := src.count(), time.Now()
		w.bell.until(t, "it is back", func() bool { return src.count() > seen })
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("back after %v", d)
		}
		cancel()
		work.Wait()
	})
}

// A heartbeat that is ahead of its entries by a moment is no stall, however
// long the stream was idle before.
func TestIdleThenBehindIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := simulated(t, func(c *conn) {
			c.accept(helloAck(100))
			s := c.bulk()
			put(s, nil)
			time.Sleep(20 * time.Minute)
			c.send(wire.Heartbeat{HeadLSN: 101, StalenessMS: -1})
			time.Sleep(9 * time.Second)
			put(s, upTo(t, 101, 101))
			c.hold()
		})
		w.run()
		time.Sleep(30 * time.Minute)
		if got := w.reporter.losses(); len(got) > 0 {
			t.Errorf("lost: %v", got)
		}
		w.applied(101)
	})
}
