package link_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

// following is a world whose source follows a plan given by the test.
func following(t *testing.T) (*world, *source, *running) {
	t.Helper()
	w := newWorld(t)
	w.replica.at(100)
	src := w.source(
		func(c *conn) { c.accept(helloAck(100)); c.hold() },
		func(c *conn) { c.refuse(heliograph.CodeShuttingDown, "at home") },
	)
	l := w.run()
	w.bell.until(t, "it is connected", func() bool { w.reporter.mu.Lock(); defer w.reporter.mu.Unlock(); return len(w.reporter.connected) > 0 })
	return w, src, l
}

func TestReadIndexMultiplexed(t *testing.T) {
	w, src, l := following(t)
	c := src.last(t)
	const callers = 200
	var work sync.WaitGroup
	revs := make([]int64, callers)
	for i := range revs {
		work.Go(func() {
			rev, err := l.ReadIndex(t.Context())
			if err != nil {
				t.Error(err)
			}
			revs[i] = rev
		})
	}
	w.bell.until(t, "all have asked", func() bool { return len(c.asked()) == callers })
	ids := c.asked()
	for i := len(ids) - 1; i >= 0; i-- { // answers may come in any order
		c.send(wire.ReadIndexReply{ID: ids[i], LSN: int64(1000 + ids[i])})
	}
	work.Wait()
	seen := make(map[int64]bool)
	for _, rev := range revs {
		if rev < 1000 || seen[rev] {
			t.Errorf("revision %d", rev)
		}
		seen[rev] = true
	}
}

func TestReadIndexFails(t *testing.T) {
	w, src, l := following(t)
	c := src.last(t)
	ask := func(ctx context.Context) <-chan error {
		n := len(c.asked())
		answer := make(chan error, 1)
		go func() {
			rev, err := l.ReadIndex(ctx)
			if err == nil {
				err = errors.New("it was answered")
			}
			if rev != 0 {
				err = errors.New("an error with a revision")
			}
			answer <- err
		}()
		w.bell.until(t, "it was asked", func() bool { return len(c.asked()) > n })
		return answer
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := ask(ctx)
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	c.send(wire.ReadIndexReply{ID: c.asked()[0], LSN: 5}) // too late: nobody minds

	refused := ask(t.Context())
	c.send(wire.ReadIndexReply{ID: c.asked()[1], ErrorDetail: "etcd has no leader"})
	if err := <-refused; !strings.Contains(err.Error(), "etcd has no leader") {
		t.Errorf("refused: %v", err)
	}
	ignorant := ask(t.Context())
	c.send(wire.ReadIndexReply{ID: c.asked()[2]})
	if err := <-ignorant; !strings.Contains(err.Error(), "does not know") {
		t.Errorf("without a revision: %v", err)
	}
	lost := ask(t.Context()) // the next connection is asked, but there is none
	c.goodbye(heliograph.CodeShuttingDown, "going home")
	if err := <-lost; !errors.Is(err, link.ErrDisconnected) || !strings.Contains(err.Error(), "at home") {
		t.Errorf("lost: %v", err)
	}
}

func TestReadIndexTimesOut(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.cfg.ReadTimeout = 20 * time.Millisecond
	w.source(func(c *conn) { c.accept(helloAck(100)); c.hold() })
	l := w.run()
	w.bell.until(t, "it is connected", func() bool { w.reporter.mu.Lock(); defer w.reporter.mu.Unlock(); return len(w.reporter.connected) > 0 })
	if _, err := l.ReadIndex(t.Context()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer from") {
		t.Errorf("read index: %v", err)
	}
}

func TestReadIndexBounded(t *testing.T) {
	w, src, l := following(t)
	c := src.last(t)
	const most = 1024
	var work sync.WaitGroup
	for range most + 50 {
		work.Go(func() {
			if _, err := l.ReadIndex(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	w.bell.until(t, "as many have asked as may", func() bool { return len(c.asked()) == most })
	answered := 0
	for answered < most+50 {
		ids := c.asked()
		if len(ids) > most+answered {
			t.Fatalf("%d questions after %d answers", len(ids), answered)
		}
		for _, id := range ids[answered:] {
			c.send(wire.ReadIndexReply{ID: id, LSN: 1})
			answered++
		}
		if answered < most+50 {
			w.bell.until(t, "more have asked", func() bool { return len(c.asked()) > answered })
		}
	}
	work.Wait()
}

func TestReadIndexUnconnected(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.source(func(c *conn) { c.refuse(heliograph.CodeOverloaded, "64 mirrors are here") })
	l := w.run()
	w.lost(1)
	_, err := l.ReadIndex(t.Context())
	if !errors.Is(err, link.ErrDisconnected) || !strings.Contains(err.Error(), "64 mirrors are here") {
		t.Errorf("read index: %v", err)
	}
}

// unanswered reports whether an error says that nothing has answered.
func unanswered(err error) bool {
	_, ok := errors.AsType[*heliograph.UnansweredError](err)
	return ok
}

// Whoever asks while the link waits for its next try has it made at once; a source
// that does not answer it is told from one that refuses.
func TestReadIndexDoesNotWaitForTheNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answers atomic.Bool
		w, src, n := simulated(t, func(c *conn) {
			if !answers.Load() {
				c.refuse(heliograph.CodeNotReady, "no snapshot")
				return
			}
			c.accept(helloAck(100))
			c.hold()
		})
		w.cfg.BackoffBase, w.cfg.BackoffCap = 1000*time.Hour, 1000*time.Hour
		w.cfg.ReadTimeout = time.Minute
		l := w.run()
		w.lost(1)
		for _, cut := range []bool{true, false, true} {
			n.toSource.Store(cut)
			time.Sleep(time.Minute)
			if _, err := l.ReadIndex(t.Context()); !errors.Is(err, link.ErrDisconnected) || unanswered(err) != cut {
				t.Errorf("cut %v: %v", cut, err)
			}
		}
		n.toSource.Store(false)
		answers.Store(true)
		tries := src.count()
		reply := make(chan error, 1)
		go func() {
			rev, err := l.ReadIndex(t.Context())
			if rev != 7 {
				err = errors.Join(err, errors.New("another revision"))
			}
			reply <- err
		}()
		w.bell.until(t, "it is asked", func() bool { return src.count() > tries && len(src.conn(tries).asked()) > 0 })
		src.conn(tries).send(wire.ReadIndexReply{ID: 0, LSN: 7})
		if err := <-reply; err != nil {
			t.Error(err)
		}
	})
}

// A source ends a connection with more questions than it allows. One that nobody waits
// for any more counts until the source has answered it.
func TestReadIndexGivenUpKeepsItsPlace(t *testing.T) {
	w, src, l := following(t)
	c := src.last(t)
	const most = 1024
	ask := func(n int, wait func()) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		for range n {
			work.Go(func() {
				if _, err := l.ReadIndex(ctx); err == nil {
					t.Error("answered by nobody")
				}
			})
		}
		wait()
		cancel()
		work.Wait()
	}
	asked := func(n int) func() {
		return func() { w.bell.until(t, "all are asked", func() bool { return len(c.asked()) == n }) }
	}
	ask(most, asked(most))
	ask(100, func() { time.Sleep(100 * time.Millisecond) }) // long enough to be asked, were there places
	if n := len(c.asked()); n != most {
		t.Errorf("%d questions at once, at most %d are allowed", n, most)
	}
	c.send(wire.ReadIndexReply{ID: c.asked()[7], LSN: 7})
	ask(1, asked(most+1))
}

// askMuch has fifty ask all the time for two minutes, and checks what they are told.
func askMuch(t *testing.T, l *running, right func(error) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			for ctx.Err() == nil {
				if _, err := l.ReadIndex(ctx); !right(err) {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
}

// Many who ask for a long time do not hammer a source.
func TestReadIndexRetriesOnceASecond(t *testing.T) {
	for code, most := range map[heliograph.Code]int{heliograph.CodeOverloaded: 120, heliograph.CodeNotAuthorized: 25} {
		synctest.Test(t, func(t *testing.T) {
			w, src, _ := simulated(t, func(c *conn) { c.refuse(code, "") })
			w.cfg.BackoffBase, w.cfg.BackoffCap = 1000*time.Hour, 1000*time.Hour
			l := w.run()
			askMuch(t, l, func(err error) bool { return err != nil && !unanswered(err) })
			if n := src.count(); n < most/4 || n > most {
				t.Errorf("%s: %d tries in two minutes", code, n)
			}
		})
	}
}

// Nor do they where nobody is, be it that dials time out or that they fail at once.
func TestReadIndexDialsOnceASecond(t *testing.T) {
	for name, fails := range map[string]error{"silent": nil, "unreachable": &net.OpError{Op: "write", Net: "udp", Err: syscall.ENETUNREACH}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, n := simulated(t, idle)
				n.toSource.Store(true)
				listen := w.cfg.Listen
				var dials atomic.Int64
				w.cfg.Listen = func() (net.PacketConn, error) {
					dials.Add(1)
					if fails != nil {
						return nil, fails
					}
					return listen()
				}
				l := w.run()
				time.Sleep(time.Minute)
				dials.Store(0)
				askMuch(t, l, func(err error) bool { return unanswered(err) || errors.Is(err, context.DeadlineExceeded) })
				if n := dials.Load(); n < 60 || n > 125 {
					t.Errorf("%d dials in two minutes", n)
				}
			})
		})
	}
}

// A session that falls silent while it is asked is no answer: the source is tried
// again, and is gone.
func TestReadIndexOfASourceThatVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, src, n := simulated(t, idle)
		w.cfg.BackoffBase, w.cfg.BackoffCap = 1000*time.Hour, 1000*time.Hour
		l := w.run()
		src.last(t)
		time.Sleep(time.Minute)
		n.toSource.Store(true)
		n.toMirror.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := l.ReadIndex(ctx); !unanswered(err) || !strings.Contains(err.Error(), "no answer from 10.0.0.1:7400") {
			t.Error(err)
		}
	})
}

// What a source has asked for in vain is told from what it could not ask.
func TestReadIndexUnansweredFurtherUp(t *testing.T) {
	w, src, l := following(t)
	c := src.last(t)
	for i, want := range []bool{true, false} {
		answer := make(chan error, 1)
		go func() {
			_, err := l.ReadIndex(t.Context())
			answer <- err
		}()
		w.bell.until(t, "it was asked", func() bool { return len(c.asked()) > i })
		c.send(wire.ReadIndexReply{ID: c.asked()[i], ErrorDetail: "no answer from etcd", Unanswered: want})
		if err := <-answer; err == nil || unanswered(err) != want {
			t.Errorf("%v, want %v", err, want)
		}
	}
}
