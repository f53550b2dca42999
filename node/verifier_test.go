package node_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
)

// verifications counts, and takes a while for each.
type verifications struct {
	mu      sync.Mutex
	begun   int
	running int
	most    int
	result  heliograph.VerifyResult
}

func (v *verifications) once(ctx context.Context) heliograph.Verification {
	v.mu.Lock()
	v.begun++
	v.running++
	v.most = max(v.most, v.running)
	n, result := v.begun, v.result
	v.mu.Unlock()
	select {
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
	}
	v.mu.Lock()
	v.running--
	v.mu.Unlock()
	return heliograph.Verification{Result: result, Revision: int64(n), CompactRevision: int64(n)}
}

func (v *verifications) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.begun
}

func (v *verifications) set(r heliograph.VerifyResult) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result = r
}

func verifying(t *testing.T, interval time.Duration, f func(t *testing.T, v *node.Verifier, made *verifications)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		made := &verifications{result: heliograph.VerifyEqual}
		v := node.NewVerifier(interval, made.once, func(v heliograph.Verification) bool { return v.CompactRevision != 2 })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); v.Run(ctx) }()
		f(t, v, made)
		cancel()
		<-done
		if made.most > 1 {
			t.Errorf("%d verifications at once", made.most)
		}
	})
}

// However many mirrors ask while one is under way, or within a minute of it, there
// is one; who asks for a new one gets a new one.
func TestVerificationsAreShared(t *testing.T) {
	verifying(t, 0, func(t *testing.T, v *node.Verifier, made *verifications) {
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				if got := v.Ask(t.Context(), true); got.Revision != 1 {
					t.Errorf("verification %d", got.Revision)
				}
			})
		}
		asking.Wait()
		time.Sleep(50 * time.Second)
		if got := v.Ask(t.Context(), true); got.Revision != 1 {
			t.Errorf("within a minute: verification %d", got.Revision)
		}
		if got := v.Ask(t.Context(), false); got.Revision != 2 {
			t.Errorf("a new one: verification %d", got.Revision)
		}
		// The second is no use any more: this node has been compacted since.
		if got := v.Ask(t.Context(), true); got.Revision != 3 {
			t.Errorf("after a compaction: verification %d", got.Revision)
		}
		time.Sleep(2 * time.Minute)
		if got := v.Ask(t.Context(), true); got.Revision != 4 || made.count() != 4 {
			t.Errorf("later: verification %d of %d", got.Revision, made.count())
		}
	})
}

// What could not be done does not count, and does not make the last proof newer.
func TestUnknownIsNoProof(t *testing.T) {
	verifying(t, 0, func(t *testing.T, v *node.Verifier, made *verifications) {
		v.Ask(t.Context(), false)
		_, first := v.Results()
		made.set(heliograph.VerifyUnknown)
		time.Sleep(time.Hour)
		v.Ask(t.Context(), false)
		last, good := v.Results()
		if last.Result != heliograph.VerifyUnknown || last.Revision != 2 || good != first || good.Revision != 1 || good.At.IsZero() {
			t.Errorf("last %+v, good %+v", last, good)
		}
		v.Forget()
		if last, good := v.Results(); last.Result != "" || good.Result != "" {
			t.Errorf("last %+v, good %+v", last, good)
		}
	})
}

func TestVerifiesByItself(t *testing.T) {
	verifying(t, time.Hour, func(t *testing.T, _ *node.Verifier, made *verifications) {
		time.Sleep(59 * time.Second)
		if n := made.count(); n != 0 {
			t.Errorf("%d at the start", n)
		}
		time.Sleep(2 * time.Second)
		if n := made.count(); n != 1 {
			t.Errorf("%d after a minute", n)
		}
		time.Sleep(5 * time.Hour)
		if n := made.count(); n != 6 {
			t.Errorf("%d after five hours", n)
		}
	})
}

// Nobody waits longer than he wants, nor for a node that stops.
func TestVerificationGivenUp(t *testing.T) {
	verifying(t, 0, func(t *testing.T, v *node.Verifier, _ *verifications) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := v.Ask(ctx, false); got.Result != heliograph.VerifyUnknown || got.Why == "" {
			t.Errorf("got %+v", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		made := &verifications{result: heliograph.VerifyEqual}
		v := node.NewVerifier(0, made.once, func(heliograph.Verification) bool { return true })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		done := make(chan struct{})
		go func() { defer close(done); v.Run(ctx) }()
		v.Ask(t.Context(), false)
		<-done
		if last, good := v.Results(); last.Result != "" || good.Result != "" {
			t.Errorf("a stopped node has %+v, %+v", last, good)
		}
	})
}
