package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

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

func startProgress(ctx context.Context, w *screen, status func() heliograph.Status) *progress {
	ctx, cancel := context.WithCancel(ctx)
	p := &progress{cancel: cancel}
	p.wg.Go(func() { showProgress(ctx, w, status) })
	return p
}

func showProgress(ctx context.Context, w *screen, status func() heliograph.Status) {
	every, show := lineEvery, func(line string) { fmt.Fprintln(w, line) }
	if w.terminal {
		every, show = barEvery, w.draw
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var m meter
	for {
		select {
		case <-ctx.Done():
			w.draw("")
			return
		case now := <-tick.C:
			s := status()
			switch {
			case s.Status == heliograph.Bootstrapping && s.BytesDone > 0:
				show(m.line(now, s))
			case s.Status != heliograph.Bootstrapping && !m.at.IsZero():
				fmt.Fprintln(w, m.end(s))
				m = meter{}
			}
		}
	}
}

// stop ends the display and waits for it.
func (p *progress) stop() {
	p.cancel()
	p.wg.Wait()
}

// meter measures the rate between the first line and this one.
type meter struct {
	at   time.Time // zero before the first line
	done int64
	last int64 // done at the last line; if it falls, a snapshot has begun anew
	rev  int64 // of the replica while the snapshot is received
}

// end says what became of the snapshot.
func (m *meter) end(s heliograph.Status) string {
	if s.AppliedRevision > m.rev || s.Status == heliograph.CatchingUp || s.Status == heliograph.Following {
		return fmt.Sprintf("snapshot: done, at revision %d", s.AppliedRevision)
	}
	return "snapshot: interrupted: " + s.Why
}

func (m *meter) line(now time.Time, s heliograph.Status) string {
	if m.at.IsZero() || s.BytesDone < m.last {
		m.at, m.done, m.rev = now, s.BytesDone, s.AppliedRevision
	}
	m.last = s.BytesDone
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
