package readapi

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestReadSharesOnlyRoundsThatBeginAfterIt gives every round the time at which
// it began and every read the time at which it arrived, on one counter.
func TestReadSharesOnlyRoundsThatBeginAfterIt(t *testing.T) {
	m, err := newMetrics(nil, &watchBudget{})
	if err != nil {
		t.Fatal(err)
	}
	var clock, asked atomic.Int64
	var mu sync.Mutex
	began := make(map[*round]int64)
	r := &rounds{metrics: m}
	r.ask = func(context.Context) error {
		asked.Add(1)
		return &startedAt{clock.Add(1)}
	}
	const readers, reads = 64, 200
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for range reads {
				arrived := clock.Add(1)
				rd := r.join(t.Context())
				<-rd.done
				at := rd.err.(*startedAt).at
				if at < arrived {
					t.Errorf("a read that arrived at %d shared a round that began at %d", arrived, at)
				}
				mu.Lock()
				if old, ok := began[rd]; ok && old != at {
					t.Errorf("one round began at %d and at %d", old, at)
				}
				began[rd] = at
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.wg.Wait()
	if r.running != 0 || r.next != nil {
		t.Errorf("left behind: %d running, next %v", r.running, r.next)
	}
	if n := asked.Load(); n != int64(len(began)) {
		t.Errorf("%d rounds for %d answers", n, len(began))
	}
}

type startedAt struct{ at int64 }

func (*startedAt) Error() string { return "" }

func TestReadsThatWaitShareOneRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := newMetrics(nil, &watchBudget{})
		if err != nil {
			t.Fatal(err)
		}
		asked, release := 0, make(chan struct{})
		var mu sync.Mutex
		failure := errors.New("no answer")
		r := &rounds{metrics: m, ask: func(context.Context) error {
			mu.Lock()
			asked++
			mu.Unlock()
			<-release
			return failure
		}}
		results := make(chan error, 100)
		for range 100 {
			go func() { results <- r.wait(t.Context(), t.Context()) }()
		}
		synctest.Wait()
		mu.Lock()
		if asked != maxRounds {
			t.Errorf("%d rounds under way, want %d", asked, maxRounds)
		}
		mu.Unlock()
		impatient, cancel := context.WithCancel(t.Context())
		go func() { results <- r.wait(impatient, t.Context()) }()
		synctest.Wait()
		cancel()
		if err := <-results; err != context.Canceled {
			t.Errorf("a read whose client left: %v", err)
		}
		close(release)
		for range 100 {
			if err := <-results; err != failure {
				t.Errorf("got %v", err)
			}
		}
		if asked != maxRounds+1 {
			t.Errorf("%d rounds, want %d and one for all the rest", asked, maxRounds)
		}
	})
}
