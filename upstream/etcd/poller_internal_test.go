package etcd

import "testing"

// A poll that was on its way while the compaction revision was learned finds the
// old floor compacted. Asked then, etcd would never answer, and no compaction
// would be followed again on that connection.
func TestLatePollDoesNotAskForTheCompactionAgain(t *testing.T) {
	p := newPoller(&Upstream{}, &connection{})
	if p.compacted() {
		t.Error("compacted before any poll")
	}
	p.stale.Store(p.floor.Load()) // a poll finds it
	if !p.compacted() {
		t.Error("what a poll has found is not asked for")
	}
	old := p.floor.Load()
	p.learned(1799)
	p.stale.Store(old) // the late poll
	if p.compacted() {
		t.Error("the late poll counts")
	}
	p.stale.Store(p.floor.Load()) // the next compaction
	if !p.compacted() {
		t.Error("the next compaction is not asked for")
	}
}
