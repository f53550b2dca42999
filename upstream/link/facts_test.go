package link_test

import (
	"reflect"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

func (w *world) told() []heliograph.LeaseChange {
	w.replica.mu.Lock()
	defer w.replica.mu.Unlock()
	return append([]heliograph.LeaseChange(nil), w.replica.leases...)
}

func (w *world) auth() []wire.Heartbeat {
	w.replica.mu.Lock()
	defer w.replica.mu.Unlock()
	return append([]wire.Heartbeat(nil), w.replica.auth...)
}

// Leases that come before the snapshot wait for it: it would replace them. Access
// control does not wait.
func TestLeasesAndAuthReachTheReplica(t *testing.T) {
	w := newWorld(t)
	data := snapshotOf(42, 2*chunkBytes)
	reset := heliograph.LeaseChange{Reset: true, Put: []heliograph.Lease{{ID: 1, TTL: 10}, {ID: 2, TTL: 20}, {ID: 3, TTL: 30}}}
	w.source(func(c *conn) {
		c.silent = true
		c.accept(snapshotAck(42, data))
		c.send(wire.Heartbeat{HeadLSN: 42, StalenessMS: -1, AuthKnown: true, AuthEnabled: true, AuthRevision: 5})
		c.send(wire.Leases{Reset: true, More: true, Put: reset.Put[:2]})
		c.send(wire.Leases{Put: reset.Put[2:]})
		w.bell.until(t, "the replica hears of access control", func() bool { return len(w.auth()) == 1 })
		if got := w.told(); len(got) > 0 {
			t.Errorf("leases %+v before the snapshot", got)
		}
		c.giveSnapshot(42, data)
		w.bell.until(t, "the replica hears of leases", func() bool { return len(w.told()) == 1 })
		c.send(wire.Leases{Put: []heliograph.Lease{{ID: 4, TTL: 40}}, Removed: []int64{1}})
		c.send(wire.Heartbeat{HeadLSN: 42, StalenessMS: -1, AuthKnown: true, AuthRevision: 6})
		c.send(wire.Heartbeat{HeadLSN: 42, StalenessMS: -1})
		c.hold()
	})
	w.run()
	w.bell.until(t, "the replica has heard all", func() bool { return len(w.told()) == 2 && len(w.auth()) == 2 })
	want := []heliograph.LeaseChange{reset, {Put: []heliograph.Lease{{ID: 4, TTL: 40}}, Removed: []int64{1}}}
	if got := w.told(); !reflect.DeepEqual(got, want) {
		t.Errorf("leases %+v, want %+v", got, want)
	}
	if got := w.auth(); !got[0].AuthEnabled || got[0].AuthRevision != 5 || got[1].AuthEnabled || got[1].AuthRevision != 6 {
		t.Errorf("access control %+v", got)
	}
}
