package main

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph/heliograph"
)

func TestMeterLine(t *testing.T) {
	const mib = 1 << 20
	start := time.Now()
	var m meter
	for _, test := range []struct {
		after time.Duration
		s     heliograph.Status
		want  string
	}{
		{0, heliograph.Status{BytesDone: mib, BytesTotal: 40 * mib, ETAMS: -1},
			"snapshot: [                            ]   2%  1.0 MiB of 40 MiB, ?, ? left"},
		{2 * time.Second, heliograph.Status{BytesDone: 21 * mib, BytesTotal: 40 * mib, ETAMS: 1900},
			"snapshot: [==============              ]  52%  21 MiB of 40 MiB, 10 MiB/s, 2s left"},
		{4 * time.Second, heliograph.Status{BytesDone: 41 * mib, BytesTotal: 40 * mib, ETAMS: 0},
			"snapshot: [============================] 100%  41 MiB of 40 MiB, 10 MiB/s, 0s left"},
		{5 * time.Second, heliograph.Status{BytesDone: 2 * mib, ETAMS: -1}, // begun anew, size not known
			"snapshot: 2.0 MiB, ?"},
		{7 * time.Second, heliograph.Status{BytesDone: 4 * mib, ETAMS: -1},
			"snapshot: 4.0 MiB, 1.0 MiB/s"},
	} {
		if got := m.line(start.Add(test.after), test.s); got != test.want {
			t.Errorf("after %s: got  %q\nwant %q", test.after, got, test.want)
		}
	}
}

// show returns what a snapshot that is received for 25 s and then ends as last
// looks like.
func show(t *testing.T, terminal bool, last heliograph.Status) string {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Pointer[heliograph.Status]
		now.Store(&heliograph.Status{Status: heliograph.Disconnected})
		w := &screen{w: &out, terminal: terminal}
		p := startProgress(t.Context(), w, func() heliograph.Status { return *now.Load() })
		time.Sleep(1050 * time.Millisecond) // so that no change falls on a tick
		start := time.Now()
		for time.Since(start) < 25*time.Second {
			done := time.Since(start).Milliseconds()*1049 + 1 // a little more than 1 MiB/s
			now.Store(&heliograph.Status{Status: heliograph.Bootstrapping, BytesDone: done, BytesTotal: 25 << 20, ETAMS: -1})
			time.Sleep(100 * time.Millisecond)
		}
		now.Store(&last)
		time.Sleep(11 * time.Second)
		p.stop()
	})
	return out.String()
}

// A log gets a line every ten seconds, and how it ended.
func TestProgressInALog(t *testing.T) {
	got := show(t, false, heliograph.Status{Status: heliograph.Following, AppliedRevision: 77})
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "MiB of 25 MiB") || !strings.Contains(lines[1], "1.0 MiB/s") ||
		lines[2] != "snapshot: done, at revision 77" || strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
}

func TestProgressSaysWhatInterruptedIt(t *testing.T) {
	got := show(t, false, heliograph.Status{Status: heliograph.Degraded, Why: "cut"})
	if !strings.HasSuffix(got, "\nsnapshot: interrupted: cut\n") || strings.Contains(got, "done") {
		t.Errorf("got %q", got)
	}
}

// A terminal gets one line that is drawn again and again.
func TestProgressOnATerminal(t *testing.T) {
	got := show(t, true, heliograph.Status{Status: heliograph.CatchingUp, AppliedRevision: 77})
	if n := strings.Count(got, "snapshot: ["); n < 120 || n > 126 || strings.Count(got, "\n") != 1 {
		t.Errorf("%d bars in 25 s, %q", n, got[:min(len(got), 400)])
	}
	if !strings.HasSuffix(got, clearLine+"snapshot: done, at revision 77\n") {
		t.Errorf("ends in %q", got[len(got)-100:])
	}
}

// A log line takes the place of the bar, which is drawn again below it.
func TestLogLinesDoNotMixWithTheBar(t *testing.T) {
	var out bytes.Buffer
	w := &screen{w: &out, terminal: true}
	w.draw("[= ]")
	if _, err := w.Write([]byte("a line\n")); err != nil {
		t.Fatal(err)
	}
	w.draw("[==]")
	w.draw("")
	if want := "[= ]" + clearLine + "a line\n" + "[==]" + clearLine; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// Nothing is shown where there is nothing to show, and a cancelled context ends
// the display.
func TestProgressIsQuietOtherwise(t *testing.T) {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := startProgress(ctx, &screen{w: &out}, func() heliograph.Status { return heliograph.Status{Status: heliograph.Following} })
		time.Sleep(time.Minute)
		cancel()
		p.stop()
	})
	if out.Len() != 0 {
		t.Errorf("got %q", out.String())
	}
}
