package source_test

import (
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

// change reads frames until a change of leases is whole, and returns it and how
// many heartbeats and frames of leases came.
func (p *peer) change() (c heliograph.LeaseChange, beats, frames int) {
	p.t.Helper()
	for {
		kind, payload := p.frame()
		if kind == wire.TypeHeartbeat {
			beats++
		}
		if kind != wire.TypeLeases {
			continue
		}
		f, err := wire.DecodeLeases(payload)
		if err != nil {
			p.t.Fatal(err)
		}
		frames++
		c.Reset = c.Reset || f.Reset
		c.Put, c.Removed = append(c.Put, f.Put...), append(c.Removed, f.Removed...)
		if !f.More {
			return c, beats, frames
		}
	}
}

// A mirror is told all leases, then what changes; heartbeats go on between the
// frames of a large change.
func TestLeasesAreTold(t *testing.T) {
	const many = 200_000
	replica := newMemory(3)
	all := heliograph.LeaseChange{Reset: true, Put: make([]heliograph.Lease, many)}
	for i := range all.Put {
		all.Put[i] = heliograph.Lease{ID: int64(i) + 1, TTL: 60}
	}
	replica.leases = leases{all}
	w := start(t, replica, func(c *source.Config) { c.Heartbeat = 5 * time.Millisecond })
	p := w.connect("m1")
	h := hello(3)
	h.Features = []string{wire.FeatureLeases}
	if ack := p.greet(h); !ack.Accepted {
		t.Fatalf("refused: %+v", ack)
	}
	began := time.Now()
	c, beats, frames := p.change()
	took := time.Since(began)
	if !c.Reset || len(c.Put) != many || c.Put[many-1] != all.Put[many-1] {
		t.Errorf("%d leases, reset %v", len(c.Put), c.Reset)
	}
	t.Logf("%d frames and %d heartbeats in %s", frames, beats, took)
	if beats < 2 {
		t.Errorf("%d heartbeats between %d frames of leases within %s", beats, frames, took)
	}
	replica.mu.Lock()
	replica.leases = append(replica.leases, heliograph.LeaseChange{Put: []heliograph.Lease{{ID: 7, TTL: 70}}, Removed: []int64{8}})
	replica.mu.Unlock()
	if c, _, _ := p.change(); c.Reset || len(c.Put) != 1 || c.Put[0].TTL != 70 || len(c.Removed) != 1 || c.Removed[0] != 8 {
		t.Errorf("got %+v", c)
	}
}

// A mirror that has not said that it knows the frame gets none.
func TestLeasesAreNotToldToThoseWhoDoNotKnow(t *testing.T) {
	replica := newMemory(3)
	replica.leases = leases{{Reset: true, Put: []heliograph.Lease{{ID: 1, TTL: 60}}}}
	w := start(t, replica, func(c *source.Config) { c.Heartbeat = 5 * time.Millisecond })
	p := w.connect("m1")
	p.follow(3)
	for range 5 {
		if kind, _ := p.frame(); kind != wire.TypeHeartbeat {
			t.Fatalf("a %s frame", kind)
		}
	}
}

// The first heartbeat comes at once, and says what is known of access control.
func TestHeartbeatTellsAuth(t *testing.T) {
	replica := newMemory(3)
	w := start(t, replica, nil)
	for _, auth := range []*wire.Heartbeat{nil, {AuthEnabled: true, AuthRevision: 9}, {AuthRevision: 10}} {
		replica.mu.Lock()
		replica.auth = auth
		replica.mu.Unlock()
		p := w.connect("m1")
		p.follow(3)
		kind, payload := p.frame()
		h, err := wire.DecodeHeartbeat(payload)
		if err != nil || kind != wire.TypeHeartbeat {
			t.Fatalf("%s: %v", kind, err)
		}
		if auth == nil && h.AuthKnown || auth != nil && (!h.AuthKnown || h.AuthEnabled != auth.AuthEnabled || h.AuthRevision != auth.AuthRevision) {
			t.Errorf("got %+v, want %+v", h, auth)
		}
	}
}
