package session_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heliograph/heliograph/source/session"
)

// TestTranscripts replays every story of testdata: a line is a call, a line with
// '>' what it must answer.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { replay(t, file) })
	}
}

func replay(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var p *session.Progress
	var answer string
	asked, checked := 0, 0
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		if n == 1 && !strings.HasPrefix(line, "# Guards against") {
			t.Fatalf("%s does not begin with what it guards against", file)
		}
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		if want, ok := strings.CutPrefix(line, "> "); ok {
			checked++
			if answer != want {
				t.Errorf("%s:%d: got %q, want %q", file, n, answer, want)
			}
			continue
		}
		words := strings.Fields(line)
		args := argsOf(t, words[1:])
		switch words[0] {
		case "resume":
			p = session.Resume(args.num("applied"), args.num("window"))
			continue
		case "bootstrap":
			p = session.Bootstrap(args.num("snapshot"), args.num("held"), args.num("window"))
			continue
		}
		asked++
		answer = call(t, p, words[0], args)
	}
	if asked == 0 || asked != checked {
		t.Errorf("%s: %d calls, %d answers", file, asked, checked)
	}
}

func call(t *testing.T, p *session.Progress, name string, a args) string {
	t.Helper()
	verdict := func(err error) string {
		if err != nil {
			return "error"
		}
		return "ok"
	}
	switch name {
	case "next":
		action := p.Next(a.cursor("end"), a.num("floor"))
		return fmt.Sprintf("%s %s cursor=%s", action, p.State(), p.Cursor())
	case "sending":
		err := p.Sending(a.cursor("from"), a.cursor("to"), a.num("bytes"), a.num("at"))
		return fmt.Sprintf("%s %s cursor=%s sent=%d in-flight=%d", verdict(err), p.State(), p.Cursor(), p.Sent(), p.InFlight())
	case "ack":
		rose, err := p.Acked(a.num("applied"), a.num("durable"))
		word := "same"
		if err != nil {
			word = "error"
		} else if rose {
			word = "rose"
		}
		return fmt.Sprintf("%s applied=%d durable=%d in-flight=%d", word, p.Applied(), p.Durable(), p.InFlight())
	case "snapshot-sent":
		p.SnapshotSent()
	case "catch-up":
		p.CatchUp()
	case "oldest":
		if at, ok := p.Oldest(); ok {
			return strconv.FormatInt(at, 10)
		}
		return "none"
	default:
		t.Fatalf("unknown call %q", name)
	}
	return fmt.Sprintf("%s cursor=%s", p.State(), p.Cursor())
}

type args struct {
	t *testing.T
	m map[string]string
}

func argsOf(t *testing.T, words []string) args {
	a := args{t, make(map[string]string)}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		a.m[k] = v
	}
	return a
}

func (a args) num(key string) int64 {
	a.t.Helper()
	n, err := strconv.ParseInt(a.m[key], 10, 64)
	if err != nil {
		a.t.Fatalf("%s: %v", key, err)
	}
	return n
}

func (a args) cursor(key string) session.Cursor {
	a.t.Helper()
	c, err := session.ParseCursor(a.m[key])
	if err != nil {
		a.t.Fatalf("%s: %v", key, err)
	}
	return c
}

// TestProgressInvariants plays a source and a mirror at random: whatever the
// order, every revision goes out once, in order, the window holds, and an honest
// mirror is never refused and can always bring things forward.
func TestProgressInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const window = 1000
		var p *session.Progress
		first := rapid.Int64Range(1, 50).Draw(t, "first")
		if rapid.Bool().Draw(t, "snapshot") {
			p = session.Bootstrap(first-1, 0, window)
			p.SnapshotSent()
		} else {
			p = session.Resume(first-1, window)
		}
		end := session.Cursor{Rev: first}
		want := session.Cursor{Rev: first}
		for range 200 {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				end.Rev += rapid.Int64Range(0, 5).Draw(t, "grow")
			case 1:
				if p.Next(end, 0) != session.Send {
					continue
				}
				to := session.Cursor{Rev: want.Rev + 1}
				if rapid.Bool().Draw(t, "partly") {
					to = session.Cursor{Rev: want.Rev, Sub: want.Sub + 1}
				}
				before := p.InFlight()
				if want.Sub == 0 && before >= window {
					t.Fatalf("a revision begins with %d bytes in flight", before)
				}
				if err := p.Sending(want, to, rapid.Int64Range(1, 700).Draw(t, "bytes"), 0); err != nil {
					t.Fatal(err)
				}
				want = to
			case 2:
				if applied := p.Sent(); applied > 0 && (p.Applied() < applied) {
					to := rapid.Int64Range(max(p.Applied(), first-1), applied).Draw(t, "applied")
					if _, err := p.Acked(to, max(p.Durable(), to-1)); err != nil {
						t.Fatal(err)
					}
				}
			case 3:
				if _, err := p.Acked(p.Sent()+1, 0); err == nil {
					t.Fatalf("revision %d was acknowledged and never sent", p.Sent()+1)
				}
			}
			if p.Cursor() != want || p.Applied() > p.Sent() || p.InFlight() < 0 {
				t.Fatalf("cursor %s, want %s; applied %d, sent %d, in flight %d", p.Cursor(), want, p.Applied(), p.Sent(), p.InFlight())
			}
		}
		if want.Sub == 0 && p.Sent() >= first {
			if _, err := p.Acked(p.Sent(), p.Sent()); err != nil {
				t.Fatal(err)
			}
			if p.InFlight() != 0 {
				t.Fatalf("%d bytes in flight after everything was acknowledged", p.InFlight())
			}
		}
	})
}

func TestMarksAreBounded(t *testing.T) {
	p := session.Resume(0, 1<<30)
	allocs := testing.AllocsPerRun(1, func() {
		for range int64(20_000) { // frames too far apart to count as one
			at := p.Cursor()
			if err := p.Sending(at, session.Cursor{Rev: at.Rev + 1}, 1, at.Rev*1000); err != nil {
				t.Fatal(err)
			}
		}
	})
	if allocs > 100 {
		t.Errorf("%v allocations", allocs)
	}
	if got, want := p.InFlight(), p.Sent(); got != want {
		t.Errorf("%d bytes in flight, want %d", got, want)
	}
	if _, err := p.Acked(p.Sent(), 0); err != nil || p.InFlight() != 0 {
		t.Errorf("%d bytes in flight after the last ack, %v", p.InFlight(), err)
	}
}

func TestCursorString(t *testing.T) {
	for _, c := range []session.Cursor{{}, {Rev: 7}, {Rev: 7, Sub: 12}} {
		if got, err := session.ParseCursor(c.String()); err != nil || got != c {
			t.Errorf("%s: got %s, %v", c, got, err)
		}
	}
	for _, s := range []string{"", "7", "7/", "/1", "7/1x", " 7/1", "-1/0", "07/1"} {
		if c, err := session.ParseCursor(s); err == nil {
			t.Errorf("%q: got %s", s, c)
		}
	}
}
