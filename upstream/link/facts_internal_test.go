package link

import (
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// lots returns n leases from an id on.
func lots(from, n int) []heliograph.Lease {
	list := make([]heliograph.Lease, n)
	for i := range list {
		list[i] = heliograph.Lease{ID: int64(from + i), TTL: 1}
	}
	return list
}

func TestFactsKeepTheNewestState(t *testing.T) {
	f := newFacts()
	f.begin()
	tell := func(frames ...wire.Leases) {
		t.Helper()
		for _, frame := range frames {
			if err := f.leases(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantSizes := func(when string, reset bool, put, removed int) {
		t.Helper()
		if c := f.takeLeases(); c.Reset != reset || len(c.Put) != put || len(c.Removed) != removed {
			t.Errorf("%s: reset %v, %d put, %d removed; want %v, %d, %d", when, c.Reset, len(c.Put), len(c.Removed), reset, put, removed)
		}
	}
	wantSizes("nothing", false, 0, 0)
	tell(wire.Leases{Reset: true, More: true, Put: lots(1, 100)})
	wantSizes("half a change", false, 0, 0)
	tell(wire.Leases{Put: lots(101, 100)}, wire.Leases{Removed: []int64{7, 777}})
	wantSizes("all but one", true, 199, 0)
	tell(wire.Leases{Put: lots(1, 1)}, wire.Leases{Removed: []int64{1, 2}}, wire.Leases{Put: lots(2, 1)})
	wantSizes("one there, one not", false, 1, 1)
	tell(wire.Leases{Put: lots(1, 5), Removed: []int64{9}}, wire.Leases{Reset: true})
	wantSizes("none at all", true, 0, 0)
	wantSizes("told", false, 0, 0)
}

// What a source makes this side keep is bounded.
func TestFactsAreBounded(t *testing.T) {
	f := newFacts()
	var err error
	told := 0
	for ; err == nil && told < 2*heliograph.MaxLeases; told += wire.MaxFrameLeases {
		err = f.leases(wire.Leases{More: true, Put: lots(told+1, wire.MaxFrameLeases)})
	}
	if err == nil || told > heliograph.MaxLeases+wire.MaxFrameLeases {
		t.Errorf("%d leases were taken: %v", told, err)
	}
	f = newFacts()
	if err := f.leases(wire.Leases{Reset: true, More: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.leases(wire.Leases{Reset: true}); err == nil {
		t.Error("a change within a change was taken")
	}
}
