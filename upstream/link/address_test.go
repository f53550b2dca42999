package link_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
)

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

// A source that asks for a new connection gets it, not the next address; one
// that asks twice in a row does not.
func TestSameAddressAfterReset(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	gone := func(c *conn) { c.refuse(heliograph.CodeReset, "") }
	first := w.source(gone)
	second := w.source(func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() })
	w.run()
	w.applied(101)
	if want := []string{first.addr, first.addr, second.addr}; !slices.Equal(w.reporter.connecting, want) {
		t.Errorf("tried %v, want %v", w.reporter.connecting, want)
	}
}

// Of several addresses one that says that the histories differ is passed over, and is
// believed when all say so, or no other was followed of late.
func TestDivergedOneOfSeveral(t *testing.T) {
	other := func(c *conn) { c.refuse(heliograph.CodeDiverged, "other records") }
	diverged := func(t *testing.T, err error) {
		t.Helper()
		if d, ok := errors.AsType[*heliograph.DivergedError](err); !ok || d.Why != "other records" {
			t.Errorf("Run: %v", err)
		}
	}
	follow := func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() }
	t.Run("another can be followed", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.SlowRetry = time.Hour
		first := w.source(other)
		// It is gone for a moment, and comes back.
		w.source(
			func(c *conn) { c.accept(helloAck(100)); c.goodbye(heliograph.CodeShuttingDown, "") },
			func(c *conn) { c.refuse(heliograph.CodeNotReady, "") },
			func(c *conn) { c.refuse(heliograph.CodeNotReady, "") },
			follow,
		)
		w.run()
		w.applied(101)
		if n := first.count(); n != 4 {
			t.Errorf("asked the first %d times, want once in each round", n)
		}
	})
	t.Run("all say so", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.SlowRetry = time.Hour
		first, second := w.source(other), w.source(other)
		diverged(t, w.run().wait(t))
		if first.count() != 1 || second.count() != 1 {
			t.Errorf("asked %d and %d times, want each once", first.count(), second.count())
		}
	})
	away := func(c *conn) { c.refuse(heliograph.CodeNotReady, "") }
	t.Run("no other was followed", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.SlowRetry = time.Hour
		first, second := w.source(other), w.source(away)
		diverged(t, w.run().wait(t))
		if first.count() != 1 || second.count() != 1 {
			t.Errorf("asked %d and %d times, want each once", first.count(), second.count())
		}
	})
	t.Run("no other comes back", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.source(other)
		w.source(func(c *conn) { c.accept(helloAck(100)); c.goodbye(heliograph.CodeShuttingDown, "") }, away)
		diverged(t, w.run().wait(t))
	})
	t.Run("after a reset", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.cfg.SlowRetry = time.Hour
		w.source(func(c *conn) { c.accept(helloAck(100)); c.goodbye(heliograph.CodeReset, "") }, other)
		diverged(t, w.run().wait(t))
	})
	t.Run("what a source sent does not fit", func(t *testing.T) {
		w := newWorld(t)
		w.replica.at(100)
		w.replica.applyErr = func(int64) error { return &heliograph.DivergedError{Why: "other records"} }
		w.source(follow)
		second := w.source(follow)
		diverged(t, w.run().wait(t))
		if n := second.count(); n != 0 {
			t.Errorf("asked the second %d times", n)
		}
	})
}
