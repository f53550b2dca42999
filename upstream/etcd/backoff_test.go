package etcd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoffDoublesByTheRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const base, limit, endpoints = 500 * time.Millisecond, 30 * time.Second, 3
		longest := make([]time.Duration, 30)
		for range 200 {
			b := backoff{base: base, cap: limit, endpoints: endpoints}
			for i := range longest {
				began := time.Now()
				if err := b.wait(t.Context(), false, nil); err != nil {
					t.Fatal(err)
				}
				pause := time.Since(began)
				longest[i] = max(longest[i], pause)
				if bound := min(base<<(i/endpoints), limit); pause > bound {
					t.Fatalf("pause %d is %s: want at most %s", i, pause, bound)
				}
			}
		}
		if longest[0] < base/2 || longest[len(longest)-1] < limit/2 {
			t.Errorf("longest pauses %s and %s: the bounds are not used", longest[0], longest[len(longest)-1])
		}
	})
}

func TestBackoffIsSlowForWhatAPersonMustMend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff{base: time.Second, cap: 30 * time.Second, endpoints: 1}
		for range 100 {
			began := time.Now()
			if err := b.wait(t.Context(), true, nil); err != nil {
				t.Fatal(err)
			}
			if pause := time.Since(began); pause < 15*time.Second || pause > 30*time.Second {
				t.Fatalf("pause %s", pause)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.wait(ctx, true, nil); err == nil {
			t.Error("waited with a context that has ended")
		}
	})
}

// Who waits for a connection has it tried soon, and not before.
func TestBackoffIsShortWhileSomebodyWaits(t *testing.T) {
	for slow, want := range map[bool]time.Duration{false: retryEvery, true: retrySlowEvery} {
		synctest.Test(t, func(t *testing.T) {
			b := backoff{base: time.Hour, cap: time.Hour, endpoints: 1}
			for _, after := range []time.Duration{0, want / 2, 2 * want} {
				wanted := make(chan struct{}, 1)
				time.AfterFunc(after, func() { wanted <- struct{}{} })
				began := time.Now()
				if err := b.wait(t.Context(), slow, wanted); err != nil {
					t.Fatal(err)
				}
				if pause := time.Since(began); pause > max(want, after) {
					t.Errorf("slow %v, asked after %s: pause %s", slow, after, pause)
				}
			}
		})
	}
}
