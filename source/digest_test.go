package source_test

import (
	"context"
	"hash/fnv"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

// DigestAt implements [source.Replica]. Any digest will do that mirrors share.
func (m *memory) DigestAt(block int64) (uint64, bool) {
	d := heliograph.BlockDigest{Block: block}
	if d.Last() > m.Applied() {
		return 0, false
	}
	sum, err := m.Digest(max(1, d.First()), d.Last())
	return sum, err == nil
}

// Digest implements [source.Replica].
func (m *memory) Digest(from, to int64) (uint64, error) {
	var sum uint64
	for rev := from; rev <= to; rev++ {
		for _, r := range m.batch(rev) {
			h := fnv.New64a()
			_, _ = h.Write(r.Key)
			_, _ = h.Write(r.Value)
			sum += h.Sum64()
		}
	}
	return sum, nil
}

// A mirror of another history is refused before it is sent a record, and told
// where it differs; one with nothing to compare is counted.
func TestHistoriesAreComparedBeforeTheFirstRecord(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(2200), nil)
	block, _ := w.replica.DigestAt(1)
	tail, _ := w.replica.Digest(2048, 2100)
	proof := func(block, tail uint64) wire.Hello {
		h := hello(2100)
		h.Digests = []heliograph.BlockDigest{{Block: 1, Sum: block}}
		h.Tails = []heliograph.TailDigest{{From: 2048, Sum: tail}}
		return h
	}
	for _, tt := range []struct {
		hello wire.Hello
		where string
	}{
		{proof(block+1, tail), "revisions 2 to 2047"},
		{proof(block, tail+1), "revisions 2048 to 2100"},
	} {
		p := w.connect("m1")
		ack := p.greet(tt.hello)
		if ack.Accepted || ack.ErrorCode != heliograph.CodeDiverged || !strings.Contains(ack.ErrorDetail, tt.where) || strings.Contains(ack.ErrorDetail, "\n") {
			t.Errorf("ack %+v, want it to name %s", ack, tt.where)
		}
		p.closed(heliograph.CodeDiverged)
	}
	if got := w.metric("sent_frames_total"); got != 0 {
		t.Errorf("%v frames sent", got)
	}
	p := w.connect("m1")
	if ack := p.greet(proof(block, tail)); !ack.Accepted {
		t.Fatalf("ack %+v", ack)
	}
	w.connect("m2").follow(2150)
	if a, b := w.metric("histories_total", "result", "proven"), w.metric("histories_total", "result", "unproven"); a != 1 || b != 1 {
		t.Errorf("%v proven, %v unproven, want one each", a, b)
	}
}

// A verification's answer is passed on, equal or not; one that could not be done
// says why.
func TestVerify(t *testing.T) {
	t.Parallel()
	results := []heliograph.Verification{
		{Result: heliograph.VerifyEqual, Revision: 9, CompactRevision: 4, EtcdHash: 7, Hash: 7, EtcdEndpoint: "http://a:2379"},
		{Result: heliograph.VerifyUnequal, Why: "other hash", Revision: 9, EtcdHash: 7, Hash: 8},
		heliograph.Unverified("etcd is unreachable"),
	}
	n := 0
	w := start(t, newMemory(10), func(c *source.Config) {
		c.Verify = func(context.Context) heliograph.Verification { n++; return results[n-1] }
	})
	p := w.connect("m1")
	if ack := p.follow(7); len(ack.Features) != 1 || ack.Features[0] != wire.FeatureVerify {
		t.Errorf("features %q", ack.Features)
	}
	for i, want := range []wire.VerifyReply{
		{ID: 1, LSN: 9, CompactLSN: 4, EtcdHash: 7, Hash: 7, Endpoint: "http://a:2379"},
		{ID: 2, LSN: 9, EtcdHash: 7, Hash: 8},
		{ID: 3, ErrorDetail: "etcd is unreachable"},
	} {
		p.say(wire.Verify{ID: uint64(i + 1)})
		got, err := wire.DecodeVerifyReply(p.await(wire.TypeVerifyReply))
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	if got := w.metric("verifications_total"); got != 3 {
		t.Errorf("%v verifications counted", got)
	}
}

// A verification that takes long does not hold heartbeats back, and more requests
// than a mirror can need end it.
func TestVerifyDoesNotBlock(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), func(c *source.Config) {
		c.Verify = func(ctx context.Context) heliograph.Verification {
			<-ctx.Done()
			return heliograph.Unverified("too late")
		}
	})
	p := w.connect("m1")
	p.follow(7)
	p.say(wire.Verify{ID: 1})
	for range 3 {
		p.await(wire.TypeHeartbeat)
	}
	for id := range uint64(20) {
		p.say(wire.Verify{ID: id})
	}
	p.goodbye(heliograph.CodeProtocol)
}
