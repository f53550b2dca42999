package source_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

func TestOverloaded(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, w *world, at int64) {
		t.Helper()
		p := w.connect("late")
		if ack := p.greet(hello(at)); ack.Accepted || ack.ErrorCode != heliograph.CodeOverloaded {
			t.Errorf("ack %+v", ack)
		}
		p.closed(heliograph.CodeOverloaded)
	}
	t.Run("mirrors", func(t *testing.T) {
		w := start(t, newMemory(10), func(c *source.Config) { c.MaxMirrors = 2 })
		first := w.connect("m1")
		first.follow(5)
		w.connect("m2").follow(5)
		refused(t, w, 5)
		first.conn.CloseWithError(0, "")
		eventually(t, "a place is free", func() bool { return len(w.server.Downstreams()) == 1 })
		w.connect("m3").follow(5)
	})
	t.Run("address", func(t *testing.T) {
		w := start(t, newMemory(10), func(c *source.Config) { c.MaxPerAddress = 1 })
		w.connect("m1").follow(5)
		refused(t, w, 5)
	})
	t.Run("snapshots", func(t *testing.T) {
		w := start(t, newMemory(10), func(c *source.Config) { c.MaxSnapshots = 1 })
		first := w.connect("m1")
		ack := first.follow(0)
		refused(t, w, 0)
		w.connect("m2").follow(5) // needs none
		first.snapshot(ack)
		first.ack(10)
		eventually(t, "the snapshot is released", func() bool {
			return locked(w.replica, func() int { return w.replica.pinned }) == 0
		})
		second := w.connect("m3")
		second.snapshot(second.follow(0))
	})
}

// TestFlood: whoever opens connections and says nothing is turned away before a
// handshake, and a mirror that is there already does not notice.
func TestFlood(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), func(c *source.Config) { c.MaxMirrors, c.MaxPerAddress = 2, 1 })
	p := w.connect("m1")
	p.follow(10)
	refused := false
	for range 2*1 + 16 + 2 { // beyond the limit of an address
		if _, err := w.dial(w.ca.issue(time.Hour, uri(heliograph.RoleMirror, "flood"))); err != nil {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("every connection was accepted")
	}
	w.replica.put(1, 10)
	p.take(w.replica, 11)
}

// TestSilence: a mirror that stops speaking is closed; one that sends its
// heartbeats stays.
func TestSilence(t *testing.T) {
	t.Parallel()
	const silence = 400 * time.Millisecond
	w := start(t, newMemory(10), func(c *source.Config) { c.Silence = silence })
	quiet, alive := w.connect("quiet"), w.connect("alive")
	quiet.follow(10)
	alive.follow(10)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(silence / 8)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				alive.say(wire.Heartbeat{HeadLSN: 10, StalenessMS: -1})
			case <-stop:
				return
			}
		}
	}()
	quiet.goodbye(heliograph.CodeTimeout)
	close(stop)
	<-done
	alive.goodbye(heliograph.CodeTimeout)
	if got := w.metric("endings_total", "code", "timeout"); got != 2 {
		t.Errorf("%v endings counted", got)
	}
}

// TestUnreadBulk: a mirror that does not read what it is sent is closed, however
// alive it seems (fault 15), and control frames reach it meanwhile.
func TestUnreadBulk(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]int64{"snapshot": 0, "entries": 1} {
		t.Run(name, func(t *testing.T) {
			replica := newMemory(40)
			for range 10 {
				replica.put(1, 2<<20)
			}
			replica.blob = 20 << 20
			w := start(t, replica, func(c *source.Config) { c.Stall = 500 * time.Millisecond })
			p := w.connect("m1")
			p.follow(at)
			p.say(wire.ReadIndex{ID: 3})
			p.await(wire.TypeReadIndexReply)
			g := p.goodbye(heliograph.CodeTimeout)
			if !strings.Contains(g.Detail, "took no bytes") {
				t.Errorf("detail %q", g.Detail)
			}
		})
	}
}

// TestFullWindowTimesOut: a mirror that reads but never acknowledges is closed
// once its window is full.
func TestFullWindowTimesOut(t *testing.T) {
	t.Parallel()
	replica := newMemory(300)
	w := start(t, replica, func(c *source.Config) {
		c.WindowBytes, c.Stall = 10<<10, 300*time.Millisecond
	})
	p := w.connect("m1")
	p.follow(1)
	go func() { // reads what comes, to the end
		s, err := p.conn.AcceptUniStream(context.Background())
		for buf := make([]byte, 4096); err == nil; {
			_, err = s.Read(buf)
		}
	}()
	eventually(t, "the first frame", func() bool { return w.server.Downstreams()[0].InFlightBytes > 10<<10 })
	replica.put(1, 10)
	g := p.goodbye(heliograph.CodeTimeout)
	if !strings.Contains(g.Detail, "acknowledged nothing") {
		t.Errorf("detail %q", g.Detail)
	}
}

// TestCertificateExpires: the connection ends with the certificate (fault 18).
func TestCertificateExpires(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), func(c *source.Config) { c.Heartbeat = 50 * time.Millisecond })
	pair := w.ca.issue(1500*time.Millisecond, uri(heliograph.RoleMirror, "m1"))
	p, err := w.dial(pair)
	if err != nil {
		t.Fatal(err)
	}
	p.follow(10)
	p.goodbye(heliograph.CodeTimeout)
	if late := time.Since(pair.Leaf.NotAfter); late < 0 || late > 2*time.Second {
		t.Errorf("closed %v after the end", late)
	}
}

// TestCycleLater: a chain that closes into a ring after the hello is cut.
func TestCycleLater(t *testing.T) {
	t.Parallel()
	var closed atomic.Bool
	w := start(t, newMemory(10), func(c *source.Config) {
		c.Heartbeat = 20 * time.Millisecond
		c.Upstream = func() source.Upstream {
			if closed.Load() {
				return source.Upstream{Path: []string{"top", "node-m"}, Staleness: -1}
			}
			return source.Upstream{Path: []string{"top"}, Staleness: -1}
		}
	})
	p := w.connect("m1")
	p.follow(10)
	closed.Store(true)
	p.goodbye(heliograph.CodeCycle)
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), nil)
	unborn, a, b := w.connect("m3"), w.connect("m1"), w.connect("m2")
	a.follow(5)
	b.follow(0) // in the middle of its snapshot
	began := time.Now()
	stopped := make(chan struct{})
	go func() { defer close(stopped); w.stop() }()
	a.farewell(heliograph.CodeShuttingDown)
	b.farewell(heliograph.CodeShuttingDown)
	a.closed(heliograph.CodeShuttingDown)
	b.closed(heliograph.CodeShuttingDown)
	unborn.closed(heliograph.CodeShuttingDown)
	<-stopped
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	if n := locked(w.replica, func() int { return w.replica.pinned }); n != 0 {
		t.Errorf("%d snapshots are still in use", n)
	}
}

func TestServeTwice(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(1), nil)
	w.stop()
	if err := w.server.Serve(t.Context(), nil); err == nil {
		t.Error("Serve ran a second time")
	}
}

func TestServeSocketFails(t *testing.T) {
	t.Parallel()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	socket.Close()
	cfg := good(newAuthority(t))
	srv, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(t.Context(), socket); err == nil {
		t.Error("no error for a closed socket")
	}
}

func good(ca *authority) source.Config {
	return source.Config{
		Cluster: "prod-us", NodeID: "n", Replica: newMemory(1), Identify: identify,
		TLS: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool, Certificates: []tls.Certificate{ca.issue(time.Hour)}},
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for field, breakIt := range map[string]func(*source.Config){
		"Cluster":      func(c *source.Config) { c.Cluster = "" },
		"Database":     func(c *source.Config) { c.Database = "a/b" },
		"NodeID":       func(c *source.Config) { c.NodeID = "" },
		"Replica":      func(c *source.Config) { c.Replica = nil },
		"TLS":          func(c *source.Config) { c.TLS = nil },
		"certificates": func(c *source.Config) { c.TLS.ClientAuth = tls.RequestClientCert },
		"Identify":     func(c *source.Config) { c.Identify = nil },
		"MaxMirrors":   func(c *source.Config) { c.MaxMirrors = -1 },
		"Stall":        func(c *source.Config) { c.Stall = -1 },
	} {
		c := good(ca)
		breakIt(&c)
		if _, err := source.New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := source.New(good(ca)); err != nil {
		t.Error(err)
	}
}

var errOrigin = errors.New("etcd does not answer")

func TestReadIndex(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	hold := make(chan struct{})
	w := start(t, newMemory(10), func(c *source.Config) {
		c.ReadIndex = func(ctx context.Context) (int64, error) {
			switch n := calls.Add(1); n {
			case 1:
				select {
				case <-hold:
				case <-ctx.Done():
				}
				return 101, nil
			case 2:
				return 102, nil
			}
			return 0, errOrigin
		}
	})
	p := w.connect("m1")
	p.follow(10)
	reply := func() wire.ReadIndexReply {
		r, err := wire.DecodeReadIndexReply(p.await(wire.TypeReadIndexReply))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	p.say(wire.ReadIndex{ID: 1})
	eventually(t, "the first question", func() bool { return calls.Load() == 1 })
	// What comes now is later than the question under way: it needs another.
	for id := uint64(2); id <= 5; id++ {
		p.say(wire.ReadIndex{ID: id})
	}
	p.say(wire.Ack{AppliedLSN: 10, DurableLSN: 10})
	eventually(t, "all requests arrived", func() bool { return w.server.Downstreams()[0].DurableRevision == 10 })
	close(hold)
	if r := reply(); r.ID != 1 || r.LSN != 101 {
		t.Errorf("reply %+v", r)
	}
	for id := uint64(2); id <= 5; id++ {
		if r := reply(); r.ID != id || r.LSN != 102 || r.ErrorDetail != "" {
			t.Errorf("reply %+v, want id %d", r, id)
		}
	}
	if calls.Load() != 2 {
		t.Errorf("%d questions for five requests", calls.Load())
	}
	p.say(wire.ReadIndex{ID: 6})
	if r := reply(); r.ID != 6 || r.LSN != 0 || r.ErrorDetail != errOrigin.Error() {
		t.Errorf("reply %+v", r)
	}
	eventually(t, "metrics", func() bool {
		return w.metric("read_indexes_total") == 6 && w.metric("read_index_batches_total") == 3
	})
}

// A question is put for a little less time than the mirror waits, so that the mirror
// hears what came of it: also that nothing has answered.
func TestReadIndexInTime(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), func(c *source.Config) {
		c.ReadIndex = func(ctx context.Context) (int64, error) {
			until, ok := ctx.Deadline()
			if left := time.Until(until); !ok || left > 54*time.Second || left < 5*time.Second {
				return 0, fmt.Errorf("%s are left", left)
			}
			return 0, &heliograph.UnansweredError{Err: errOrigin}
		}
	})
	p := w.connect("m1")
	p.follow(10)
	p.say(wire.ReadIndex{ID: 1, WaitMS: 60_000})
	r, err := wire.DecodeReadIndexReply(p.await(wire.TypeReadIndexReply))
	if err != nil || r.LSN != 0 || r.ErrorDetail != errOrigin.Error() || !r.Unanswered {
		t.Errorf("reply %+v, %v", r, err)
	}
}

// A mirror of another node, wherever it stands, is answered, and gets nothing else.
func TestAsks(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), func(c *source.Config) {
		c.ReadIndex = func(context.Context) (int64, error) { return 33, nil }
	})
	for i, at := range []int64{1, 10, 33} {
		p := w.connect("m1")
		h := hello(at)
		h.Asks = true
		if ack := p.greet(h); !ack.Accepted || ack.SnapshotLSN != wire.NoSnapshot || ack.Origin == "" {
			t.Fatalf("at %d: %+v", at, ack)
		}
		p.await(wire.TypeHeartbeat)
		p.say(wire.ReadIndex{ID: 1, WaitMS: 1000})
		if r, err := wire.DecodeReadIndexReply(p.await(wire.TypeReadIndexReply)); err != nil || r.LSN != 33 || r.ErrorDetail != "" {
			t.Errorf("at %d: reply %+v, %v", at, r, err)
		}
		for _, d := range w.server.Downstreams() {
			t.Errorf("at %d: it is said to follow: %+v", at, d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := p.conn.AcceptUniStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at %d: a bulk stream: %v", at, err)
		}
		cancel()
		if n := w.metric("mirrors"); n != 1 { // it counts where there is room for so many
			t.Errorf("at %d: %v mirrors", at, n)
		}
		if err := p.conn.CloseWithError(0, ""); err != nil {
			t.Error(err)
		}
		eventually(t, "it has gone", func() bool { return w.metric("mirrors") == 0 })
		if n := w.metric("histories_total"); n != 0 {
			t.Errorf("after %d askers %v histories were compared", i+1, n)
		}
	}
}

func TestTooManyReads(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), func(c *source.Config) {
		c.ReadIndex = func(ctx context.Context) (int64, error) { <-ctx.Done(); return 0, ctx.Err() }
	})
	p := w.connect("m1")
	p.follow(10)
	for id := range uint64(1025) {
		p.say(wire.ReadIndex{ID: id})
	}
	p.goodbye(heliograph.CodeProtocol)
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	var up atomic.Pointer[source.Upstream]
	up.Store(&source.Upstream{Head: 17, Path: []string{"top"}, Staleness: 1500 * time.Millisecond, Why: "etcd is slow"})
	replica := newMemory(10)
	replica.compact(3)
	w := start(t, replica, func(c *source.Config) {
		c.Heartbeat = 20 * time.Millisecond
		c.Upstream = func() source.Upstream { return *up.Load() }
	})
	p := w.connect("m1")
	p.follow(10)
	beat := func() wire.Heartbeat {
		h, err := wire.DecodeHeartbeat(p.await(wire.TypeHeartbeat))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := beat()
	if h.HeadLSN != 10 || h.CompactLSN != 3 || h.UpstreamLSN != 17 || h.StalenessMS != 1500 || h.Why != "etcd is slow" || strings.Join(h.Path, " ") != "top node-a" {
		t.Errorf("heartbeat %+v", h)
	}
	up.Store(&source.Upstream{Staleness: -1})
	eventually(t, "the next heartbeat", func() bool {
		h := beat()
		return h.StalenessMS == -1 && h.UpstreamLSN == 0 && h.Why == "" && strings.Join(h.Path, " ") == "node-a"
	})
}
