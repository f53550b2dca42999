package link_test

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// proving is a replica that can show what it holds.
type proving struct {
	*replica
	proof heliograph.Proof
}

func (p proving) Proof() heliograph.Proof { return p.proof }

// The hello shows the replica's history, unless it is of another revision.
func TestHelloProves(t *testing.T) {
	for _, rev := range []int64{3500, 3499} {
		w := newWorld(t)
		w.replica.at(3500)
		proof := heliograph.Proof{Rev: rev, Blocks: []heliograph.BlockDigest{{Block: 1, Sum: 2}}, Tails: []heliograph.TailDigest{{From: 3072, Sum: 9}}}
		w.cfg.Replica = proving{w.replica, proof}
		src := w.source(func(c *conn) { c.accept(helloAck(3500)); c.hold() })
		w.run()
		w.bell.until(t, "it says hello", func() bool { return src.count() == 1 })
		h := src.conn(0).hello
		want := rev == 3500
		if got := reflect.DeepEqual(h.Digests, proof.Blocks) && reflect.DeepEqual(h.Tails, proof.Tails); got != want {
			t.Errorf("hello %+v", h)
		}
	}
}

// A refusal because of the digests ends following at once and for good.
func TestRefusedHistoryIsDiverged(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	src := w.source(func(c *conn) { c.refuse(heliograph.CodeDiverged, "other records in revisions 2 to 100") })
	l := w.run()
	if err := l.wait(t); !strings.Contains(err.Error(), "other records in revisions 2 to 100") || src.count() != 1 {
		t.Errorf("%v after %d connections", err, src.count())
	}
}

func (c *conn) verified() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]uint64(nil), c.checks...)
}

func TestVerify(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	ack := helloAck(100)
	ack.Features = []string{wire.FeatureVerify}
	src := w.source(func(c *conn) { c.accept(ack); c.hold() })
	l := w.run()
	w.bell.until(t, "it is connected", func() bool { w.reporter.mu.Lock(); defer w.reporter.mu.Unlock(); return len(w.reporter.connected) > 0 })
	c := src.last(t)
	ask := func(ctx context.Context) <-chan heliograph.Verification {
		n := len(c.verified())
		answer := make(chan heliograph.Verification, 1)
		go func() { answer <- l.Verify(ctx) }()
		w.bell.until(t, "it was asked", func() bool { return len(c.verified()) > n })
		return answer
	}
	equal := ask(t.Context())
	c.send(wire.VerifyReply{ID: 0, LSN: 90, CompactLSN: 5, EtcdHash: 7, Hash: 7, Endpoint: "http://a"})
	if got, want := <-equal, (heliograph.Verification{Result: heliograph.VerifyEqual, Revision: 90, CompactRevision: 5, EtcdHash: 7, Hash: 7, EtcdEndpoint: "http://a"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	unequal := ask(t.Context())
	c.send(wire.VerifyReply{ID: 1, LSN: 90, EtcdHash: 7, Hash: 8})
	if got := <-unequal; got.Result != heliograph.VerifyUnequal || got.EtcdHash != 7 || got.Why == "" {
		t.Errorf("got %+v", got)
	}
	// Whatever keeps it from being answered is unknown, and never equal.
	unknown := func(what string, got heliograph.Verification, why string) {
		t.Helper()
		if got.Result != heliograph.VerifyUnknown || !strings.Contains(got.Why, why) || got.Revision != 0 {
			t.Errorf("%s: %+v", what, got)
		}
	}
	failed := ask(t.Context())
	c.send(wire.VerifyReply{ID: 2, ErrorDetail: "etcd is unreachable"})
	unknown("failed", <-failed, "etcd is unreachable")
	nothing := ask(t.Context())
	c.send(wire.VerifyReply{ID: 3})
	unknown("without a revision", <-nothing, "no revision")

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	unknown("late", <-ask(ctx), "deadline")
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		given := ask(ctx)
		cancel()
		<-given
	}
	unknown("too many", l.Verify(t.Context()), "not answered")
	c.send(wire.VerifyReply{ID: 5, LSN: 90}) // nobody waits, but there is room again
	w.bell.until(t, "there is room", func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return !strings.Contains(l.Verify(ctx).Why, "not answered")
	})
	c.goodbye(heliograph.CodeShuttingDown, "going home")
	w.lost(1)
	unknown("lost", l.Verify(t.Context()), "going home")
}

func TestVerifyOfAnOlderSource(t *testing.T) {
	_, src, l := following(t)
	if v := l.Verify(t.Context()); v.Result != heliograph.VerifyUnknown || !strings.Contains(v.Why, "newer helio") {
		t.Errorf("got %+v", v)
	}
	if n := len(src.last(t).verified()); n != 0 {
		t.Errorf("%d frames that it does not know", n)
	}
}

// An answer to what was not asked breaks the protocol.
func TestVerifyReplyOutOfTheBlue(t *testing.T) {
	w, src, _ := following(t)
	src.last(t).send(wire.VerifyReply{ID: 0, LSN: 5})
	if err := w.lost(1); !strings.Contains(err.Error(), "was not asked") {
		t.Errorf("lost: %v", err)
	}
}
