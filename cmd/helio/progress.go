package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"

	"github.com/heliograph/heliograph"
)

const (
	barEvery  = 200 * time.Millisecond // on a terminal
	lineEvery = 10 * time.Second       // in a log
	barWidth  = 28
)

// progress shows a snapshot that is being received: a bar that redraws itself on
// a terminal, a line now and then elsewhere.
type progress struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startProgress(ctx context.Context, w io.Writer, status func() heliograph.Status) *progress {
	ctx, cancel := context.WithCancel(ctx)
	p := &progress{cancel: cancel}
	every, begin, end := lineEvery, "", "\n"
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		every, begin, end = barEvery, "\r\x1b[K", ""
	}
	p.wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		drawn := false
		var m meter
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				s := status()
				if s.Status == heliograph.Bootstrapping && s.BytesDone > 0 {
					fmt.Fprint(w, begin, m.line(now, s), end)
					drawn = true
				} else if drawn {
					drawn, m = false, meter{}
					if end == "" {
						fmt.Fprint(w, begin)
					}
					fmt.Fprintf(w, "snapshot: done, at revision %d\n", s.AppliedRevision)
				}
			}
		}
	})
	return p
}

// stop ends the display and waits for it.
func (p *progress) stop() {
	p.cancel()
	p.wg.Wait()
}

// meter measures the rate between the first line and this one.
type meter struct {
	at   time.Time
	done int64
}

func (m *meter) line(now time.Time, s heliograph.Status) string {
	if m.at.IsZero() || s.BytesDone < m.done {
		m.at, m.done = now, s.BytesDone
	}
	done, rate := humanize.IBytes(uint64(s.BytesDone)), "?"
	if d := now.Sub(m.at).Seconds(); d > 0 {
		rate = humanize.IBytes(uint64(float64(s.BytesDone-m.done)/d)) + "/s"
	}
	if s.BytesTotal <= 0 {
		return fmt.Sprintf("snapshot: %s, %s", done, rate)
	}
	share := min(1, float64(s.BytesDone)/float64(s.BytesTotal))
	full := int(share * barWidth)
	left := "?"
	if s.ETAMS >= 0 {
		left = (time.Duration(s.ETAMS) * time.Millisecond).Round(time.Second).String()
	}
	return fmt.Sprintf("snapshot: [%s%s] %3.0f%%  %s of %s, %s, %s left",
		strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), 100*share,
		done, humanize.IBytes(uint64(s.BytesTotal)), rate, left)
}
