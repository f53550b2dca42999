package node_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/upstream/link"
)

// story runs f in fake time with a tracker of a mirror that is connected, at
// revision 100, and follows.
func story(t *testing.T, f func(t *testing.T, tr *node.Tracker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tr := node.NewTracker(100, false)
		tr.Connecting("a:7400")
		tr.Connected("a:7400")
		tr.Upstream(0, "")
		tr.Heard(100, 10)
		f(t, tr)
	})
}

func wantState(t *testing.T, tr *node.Tracker, want heliograph.State, why string) node.View {
	t.Helper()
	v := tr.View()
	if v.State != want || !strings.Contains(v.Why, why) {
		t.Errorf("got %s %q, want %s %q", v.State, v.Why, want, why)
	}
	if (v.Why == "") != (v.State == heliograph.Following) {
		t.Errorf("%s says why: %q", v.State, v.Why)
	}
	return v
}

// beat lets time pass with a heartbeat every half second.
func beat(tr *node.Tracker, d time.Duration, head int64) {
	for range d / (500 * time.Millisecond) {
		time.Sleep(500 * time.Millisecond)
		tr.Upstream(0, "")
		tr.Heard(head, 10)
	}
}

func TestIdleSourceHasNoLag(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		beat(tr, 10*time.Minute, 100)
		v := wantState(t, tr, heliograph.Following, "")
		if v.Lag != 0 || v.Staleness != 0 {
			t.Errorf("lag %s, staleness %s", v.Lag, v.Staleness)
		}
	})
}

func TestLagIsTheAgeOfTheOldestKnownRevision(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		tr.Heard(101, 10)
		time.Sleep(2 * time.Second)
		tr.Heard(102, 10)
		time.Sleep(500 * time.Millisecond)
		if v := tr.View(); v.Lag != 2500*time.Millisecond || v.Head != 102 {
			t.Errorf("lag %s at head %d", v.Lag, v.Head)
		}
		tr.Applied(101)
		if v := tr.View(); v.Lag != 500*time.Millisecond || v.Staleness != 2500*time.Millisecond {
			t.Errorf("lag %s, staleness %s", v.Lag, v.Staleness)
		}
		tr.Applied(102)
		if v := wantState(t, tr, heliograph.Following, ""); v.Lag != 0 {
			t.Errorf("lag %s", v.Lag)
		}
	})
}

func TestLagIsDegradedAboveFiveSeconds(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		tr.Heard(200, 10)
		for rev := int64(101); rev <= 112; rev++ { // moving, but too slowly
			beat(tr, 500*time.Millisecond, 200)
			tr.Applied(rev)
		}
		wantState(t, tr, heliograph.Degraded, "lagging by 6s, 88 revisions behind")
		tr.Applied(200)
		wantState(t, tr, heliograph.Following, "")
	})
}

// 22 hours without a word (nats-server#8323): heartbeats come, nothing moves.
func TestNotMovingIsSaidWithinFiveSeconds(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		beat(tr, 3*time.Second, 150)
		wantState(t, tr, heliograph.Following, "")
		beat(tr, 2*time.Second, 150)
		wantState(t, tr, heliograph.Degraded, "not moving: revision 101 has been waiting")
	})
}

func TestSilenceIsSaidWithinFiveSeconds(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		time.Sleep(5 * time.Second)
		wantState(t, tr, heliograph.Degraded, "nothing heard from a:7400 for 5s")
		tr.Lost(errors.New("nothing heard for 5s"))
		tr.Connecting("b:7400")
		time.Sleep(20 * time.Second)
		v := wantState(t, tr, heliograph.Degraded, "last heard from the upstream 25s ago")
		if v.Fresh || v.Staleness != 25*time.Second {
			t.Errorf("fresh %v, staleness %s", v.Fresh, v.Staleness)
		}
		time.Sleep(5 * time.Second)
		wantState(t, tr, heliograph.Disconnected, "nothing heard for 5s")
		tr.Connected("b:7400")
		tr.Upstream(0, "")
		tr.Heard(100, 10)
		wantState(t, tr, heliograph.Following, "")
	})
}

func TestCatchingUpEndsAtTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := node.NewTracker(0, true)
		wantState(t, tr, heliograph.Disconnected, "starting")
		tr.Connecting("etcd")
		wantState(t, tr, heliograph.Disconnected, "connecting to etcd")
		tr.Connected("etcd")
		tr.Heard(10_000, 1)
		tr.Applied(1)
		v := wantState(t, tr, heliograph.CatchingUp, "9999 revisions behind")
		if v.ETA != -1 {
			t.Errorf("ETA %s from nothing", v.ETA)
		}
		for rev := int64(1001); rev <= 9001; rev += 1000 {
			time.Sleep(500 * time.Millisecond)
			tr.Heard(10_000, 1)
			tr.Applied(rev)
		}
		v = wantState(t, tr, heliograph.CatchingUp, "999 revisions behind")
		if v.ETA < 400*time.Millisecond || v.ETA > 600*time.Millisecond {
			t.Errorf("ETA %s for 999 revisions at 2,000 a second", v.ETA)
		}
		tr.Heard(10_500, 1) // a busy source goes on meanwhile
		tr.Applied(10_000)
		wantState(t, tr, heliograph.Following, "")
	})
}

func TestBootstrapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := node.NewTracker(0, false)
		tr.Connected("a:7400")
		tr.Heard(500, 0)
		for done := int64(0); done <= 3000; done += 1000 {
			tr.Bootstrapping(done, 10_000)
			time.Sleep(time.Second)
		}
		v := wantState(t, tr, heliograph.Bootstrapping, "receiving a snapshot from a:7400")
		if v.Done != 3000 || v.Total != 10_000 || v.ETA != 6*time.Second {
			t.Errorf("%d of %d, ETA %s", v.Done, v.Total, v.ETA)
		}
		time.Sleep(4 * time.Second)
		wantState(t, tr, heliograph.Degraded, "nothing heard")
		tr.Lost(errors.New("cut"))
		wantState(t, tr, heliograph.Degraded, "cut")
		tr.Connected("a:7400")
		tr.Bootstrapping(10_000, 10_000)
		tr.Applied(500)
		if v := tr.View(); v.Done != 0 || v.Total != 0 {
			t.Errorf("%d of %d after the end", v.Done, v.Total)
		}
	})
}

func TestStalenessIncludesTheSourcesOwn(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		time.Sleep(time.Second)
		tr.Upstream(7*time.Second, "etcd is not reachable")
		tr.Heard(100, 10)
		if v := wantState(t, tr, heliograph.Degraded, "etcd is not reachable"); v.Staleness != time.Second {
			t.Errorf("staleness %s: what was known a second ago still holds", v.Staleness)
		}
		tr.Upstream(-1, "")
		tr.Heard(101, 10)
		tr.Applied(101)
		if v := tr.View(); v.Staleness != time.Second {
			t.Errorf("staleness %s: an unknown one must not refresh it", v.Staleness)
		}
	})
}

func TestNeverUpToDateIsNotStalenessZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := node.NewTracker(100, false)
		tr.Connected("a:7400")
		tr.Heard(100, 10) // a source that has not said how old its data is
		if v := tr.View(); v.Staleness != -1 {
			t.Errorf("staleness %s", v.Staleness)
		}
	})
}

func TestConfigurationErrorsAreSaidAtOnce(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		tr.Lost(&heliograph.RefusedError{Code: heliograph.CodeUnknownDatabase, Detail: "no database x"})
		wantState(t, tr, heliograph.Disconnected, "unknown database: no database x")
		tr.Connected("a:7400")
		tr.Lost(&link.ConfigurationError{Why: "the CA differs"})
		wantState(t, tr, heliograph.Disconnected, "the CA differs")
	})
}

func TestDivergedIsFinal(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		tr.Diverged(&heliograph.DivergedError{Rev: 7, Why: "other bytes"})
		tr.Connected("a:7400")
		tr.Heard(200, 10)
		wantState(t, tr, heliograph.Diverged, "at revision 7: other bytes")
	})
}

// A mirror that stands still for hours must not keep every head it hears of, and
// what it forgets may only make lag and staleness look worse.
func TestMarksAreBounded(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		for head := int64(101); head <= 20_000; head++ {
			time.Sleep(time.Second)
			tr.Upstream(0, "")
			tr.Heard(head, 10)
		}
		if got := node.Marks(tr); got > 4096 {
			t.Errorf("%d marks", got)
		}
		if v := tr.View(); v.Lag != 19_899*time.Second {
			t.Errorf("lag %s", v.Lag)
		}
		tr.Applied(10_000)
		if v := tr.View(); v.Lag < 9_999*time.Second || v.Lag > 10_020*time.Second {
			t.Errorf("lag %s at the middle", v.Lag)
		}
		tr.Applied(20_000)
		if v := tr.View(); v.Lag != 0 {
			t.Errorf("lag %s at the end", v.Lag)
		}
	})
}

// After a resync nothing of the old replica is left: neither its head nor that it
// had diverged.
func TestResetBeginsAnew(t *testing.T) {
	story(t, func(t *testing.T, tr *node.Tracker) {
		tr.Diverged(errors.New("another history"))
		wantState(t, tr, heliograph.Diverged, "another history")
		tr.Reset()
		if v := wantState(t, tr, heliograph.Disconnected, ""); v.Head != 0 || v.Staleness != -1 || v.Compacted != 0 {
			t.Errorf("%+v", v)
		}
		tr.Connecting("a:7400")
		tr.Connected("a:7400")
		tr.Bootstrapping(5, 10)
		wantState(t, tr, heliograph.Bootstrapping, "a:7400")
		tr.Applied(20)
		tr.Upstream(0, "")
		tr.Heard(20, 0)
		if v := wantState(t, tr, heliograph.Following, ""); v.Head != 20 {
			t.Errorf("%+v", v)
		}
	})
}
