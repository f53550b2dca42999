package link

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

func TestBackoff(t *testing.T) {
	b := &backoff{base: 500 * time.Millisecond, cap: 30 * time.Second, slow: 30 * time.Second, settled: 10 * time.Second,
		random: func(n int64) int64 { return n - 1 }} // the longest
	for i, step := range []struct {
		class class
		want  time.Duration
	}{
		{normal, 500 * time.Millisecond},
		{normal, time.Second},
		{normal, 2 * time.Second},
		{quick, 500 * time.Millisecond}, // the source asked for it
		{quick, time.Second},            // twice in a row is trouble
		{slow, 45 * time.Second},
		{normal, 2 * time.Second},
		{normal, 4 * time.Second},
		{normal, 8 * time.Second},
		{normal, 16 * time.Second},
		{normal, 30 * time.Second},
		{normal, 30 * time.Second},
		{soon, 2 * time.Second}, // it is there, and will be ready
	} {
		if got := b.next(step.class); got != step.want {
			t.Errorf("step %d: waits %v, want %v", i, got, step.want)
		}
	}
	b.ended(9*time.Second, false)
	if got := b.next(normal); got != 30*time.Second {
		t.Errorf("after a short life: %v", got)
	}
	b.ended(0, true)
	if got := b.next(normal); got != 500*time.Millisecond {
		t.Errorf("after progress: %v", got)
	}
	b.next(normal)
	b.ended(10*time.Second, false)
	if got := b.next(normal); got != 500*time.Millisecond {
		t.Errorf("after a long life: %v", got)
	}
	b.random = func(int64) int64 { return 0 }
	if got := b.next(normal); got != 0 {
		t.Errorf("full jitter: %v", got)
	}
	if got := b.next(slow); got != 30*time.Second {
		t.Errorf("slow is never sooner: %v", got)
	}
}

func TestClassify(t *testing.T) {
	for code := range 256 {
		c := heliograph.Code(code)
		want := normal
		switch {
		case c == heliograph.CodeDiverged:
			want = fatal
		case c == heliograph.CodeHistoryGone || c == heliograph.CodeReset:
			want = quick
		case c == heliograph.CodeNotReady:
			want = soon
		case c.Configuration():
			want = slow
		}
		if got := classify(&heliograph.RefusedError{Code: c}); got != want {
			t.Errorf("%v: class %d, want %d", c, got, want)
		}
	}
	for _, test := range []struct {
		err    error
		class  class
		reason string
	}{
		{nil, none, "network"},
		{errors.New("x"), normal, "network"},
		{broken("x"), normal, "protocol"},
		{local("apply", errors.New("disk full")), normal, "replica"},
		{local("apply", &heliograph.DivergedError{}), fatal, "diverged"},
		{&ConfigurationError{Why: "x"}, slow, "configuration"},
		{&heliograph.RefusedError{Code: heliograph.CodeCycle}, slow, "refused"},
		{&behindError{}, soon, "behind"},
	} {
		if got := classify(test.err); got != test.class {
			t.Errorf("%v: class %d, want %d", test.err, got, test.class)
		}
		if got := reason(test.err); got != test.reason {
			t.Errorf("%v: reason %q, want %q", test.err, got, test.reason)
		}
	}
	if sooner(none, slow) != slow || sooner(slow, normal) != normal || sooner(normal, slow) != normal {
		t.Error("sooner")
	}
}

func TestVigil(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	fresh := func() *vigil {
		return &vigil{peer: "src", silence: 5 * time.Second, stall: 10 * time.Second, snapshotStall: 30 * time.Second, heard: start}
	}
	beat := func(v *vigil, s float64, head, applied int64) {
		v.hear(at(s))
		v.heartbeat(at(s), wire.Heartbeat{HeadLSN: head}, applied)
	}
	want := func(v *vigil, s float64, text string) {
		t.Helper()
		err := v.verdict(at(s))
		if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("at %v s: %v, want %q", s, err, text)
		}
	}
	v := fresh()
	want(v, 4.9, "")
	want(v, 5, "nothing heard from src for 5s")
	v.hear(at(4))
	want(v, 8.9, "")
	v.await(at(8), false)
	v.received(at(9), 100) // bulk bytes are a sign of life, too
	want(v, 13.9, "")
	v.await(at(9), false)
	v.received(at(9.5), 0) // the end of a wait is none
	want(v, 14, "nothing heard")

	// Behind, and waiting: both must last.
	v = fresh()
	v.await(at(0), false)
	for s := 0.0; s <= 100; s += 4 {
		beat(v, s, 7, 7)
		want(v, s, "") // idle
	}
	beat(v, 101, 8, 7)
	beat(v, 105, 8, 7)
	beat(v, 110, 8, 7)
	want(v, 110.9, "")
	want(v, 111, "src is at revision 8 but sent no entries for 10s")
	v.received(at(111), 50)
	want(v, 111, "") // the replica is busy
	v.await(at(112), false)
	v.hear(at(120))
	want(v, 121.9, "")
	beat(v, 121, 8, 8)
	want(v, 124, "")

	// A snapshot has its own patience, whatever the head.
	v = fresh()
	v.await(at(0), true)
	beat(v, 29, 8, 0)
	want(v, 29.9, "")
	want(v, 30, "nothing more of its snapshot for 30s")

	v = fresh()
	v.notAfter = at(3)
	want(v, 3, "")
	want(v, 3.1, "the certificate of src expired")
}

func TestHorizon(t *testing.T) {
	v := &vigil{head: 10}
	v.heartbeat(time.Now(), wire.Heartbeat{HeadLSN: 12, UpstreamLSN: 11, CompactLSN: 5}, 0)
	v.entries(15)
	v.heartbeat(time.Now(), wire.Heartbeat{HeadLSN: 13, UpstreamLSN: 20, CompactLSN: 4}, 0) // sent before the entries
	if head, compacted := v.horizon(); head != 20 || compacted != 5 {
		t.Errorf("horizon %d, %d", head, compacted)
	}
}

type position struct {
	heliograph.Replica
	applied, durable int64
}

func (p *position) Applied() int64 { return p.applied }
func (p *position) Durable() int64 { return p.durable }

func TestAcks(t *testing.T) {
	start := time.Unix(1000, 0)
	p := &position{applied: 100, durable: 90}
	a := &acks{replica: p, delay: 10 * time.Millisecond}
	for i, step := range []struct {
		atMS             int
		applied, durable int64
		start            bool
		send             bool
		ack              wire.Ack
		waitMS           int
	}{
		{0, 100, 90, false, false, wire.Ack{}, 0},                                    // a snapshot is being received
		{0, 100, 90, true, true, wire.Ack{AppliedLSN: 100, DurableLSN: 90}, 10},      // the first
		{1, 100, 90, false, false, wire.Ack{AppliedLSN: 100, DurableLSN: 90}, 10},    // looks again for what is durable
		{4, 120, 90, false, false, wire.Ack{AppliedLSN: 120, DurableLSN: 90}, 6},     // too soon
		{10, 130, 90, false, true, wire.Ack{AppliedLSN: 130, DurableLSN: 90}, 10},    // one for both
		{20, 130, 130, false, true, wire.Ack{AppliedLSN: 130, DurableLSN: 130}, 10},  // durable alone
		{30, 130, 130, false, false, wire.Ack{AppliedLSN: 130, DurableLSN: 130}, 0},  // nothing to wait for
		{99, 131, 131, false, true, wire.Ack{AppliedLSN: 131, DurableLSN: 131}, 10},  // at once after a pause
		{200, 120, 120, false, false, wire.Ack{AppliedLSN: 131, DurableLSN: 131}, 0}, // never falls
	} {
		p.applied, p.durable = step.applied, step.durable
		if step.start {
			a.start(100)
		}
		ack, send, wait := a.due(start.Add(time.Duration(step.atMS) * time.Millisecond))
		if ack != step.ack || send != step.send || wait != time.Duration(step.waitMS)*time.Millisecond {
			t.Errorf("step %d: %+v %v %v, want %+v %v %d ms", i, ack, send, wait, step.ack, step.send, step.waitMS)
		}
	}
	a = &acks{replica: p, delay: 10 * time.Millisecond, sync: true}
	p.applied, p.durable = 110, 105
	a.start(100)
	if ack, send, _ := a.due(start); !send || ack != (wire.Ack{AppliedLSN: 105, DurableLSN: 105}) {
		t.Errorf("sync: %+v %v", ack, send)
	}
	p.durable = 110
	if ack, send, _ := a.due(start); !send || ack != (wire.Ack{AppliedLSN: 110, DurableLSN: 110}) {
		t.Errorf("sync, at once: %+v %v", ack, send)
	}
}
