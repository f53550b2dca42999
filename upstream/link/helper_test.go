package link_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const nodeID = "mirror-1"

var origin = heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 0xabc}

// bell wakes those who wait for a condition whenever something was recorded.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBell() *bell { return &bell{ch: make(chan struct{})} }

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}

func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

// until waits until cond holds. A minute is far beyond what any test needs; in
// fake time it is an hour.
func (b *bell) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		ch := b.next()
		if cond() {
			return
		}
		select {
		case <-ch:
		case <-limit.C:
			t.Fatalf("still waiting until %s", what)
		}
	}
}

// replica records what a link brings it.
type replica struct {
	t    *testing.T
	bell *bell

	mu        sync.Mutex
	origin    heliograph.Origin
	applied   int64
	durable   int64
	lazy      bool // durable only at Commit or sync
	commits   int
	batches   []int64 // revisions applied, in order
	records   int
	compacts  []int64
	received  []byte // the snapshot being received
	receiving bool
	aborts    int
	installs  int
	applyErr  func(rev int64) error
	installAs int64         // what Commit says instead of the snapshot's revision
	gate      chan struct{} // Apply waits for it, if set
	leases    []heliograph.LeaseChange
	auth      []wire.Heartbeat // what it was told of access control
	adopted   []heliograph.Lineage
	adoptErr  error
	lineage   heliograph.Lineage // what Lineage says

	changing sync.Mutex // held while the replica is changed: by one at a time
}

func newReplica(t *testing.T, b *bell) *replica { return &replica{t: t, bell: b} }

// at makes it a replica that has applied rev.
func (r *replica) at(rev int64) *replica {
	r.origin, r.applied, r.durable = origin, rev, rev
	return r
}

func (r *replica) alone() func() {
	if !r.changing.TryLock() {
		r.t.Error("two goroutines change the replica at once")
		return func() {}
	}
	return r.changing.Unlock
}

func (r *replica) Origin() heliograph.Origin { r.mu.Lock(); defer r.mu.Unlock(); return r.origin }
func (r *replica) Applied() int64            { r.mu.Lock(); defer r.mu.Unlock(); return r.applied }
func (r *replica) Durable() int64            { r.mu.Lock(); defer r.mu.Unlock(); return r.durable }
func (r *replica) Compacted() int64          { return 0 }

func (r *replica) Apply(b heliograph.Batch) error {
	defer r.alone()()
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.applyErr != nil {
		if err := r.applyErr(b.Rev); err != nil {
			return err
		}
	}
	if b.Rev != r.applied+1 {
		return &heliograph.GapError{Applied: r.applied, Got: b.Rev}
	}
	r.applied = b.Rev
	r.batches = append(r.batches, b.Rev)
	r.records += len(b.Records)
	if !r.lazy {
		r.durable = r.applied
	}
	return nil
}

func (r *replica) Commit() (int64, error) {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commits++
	r.durable = r.applied
	return r.durable, nil
}

func (r *replica) sync() {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.durable = r.applied
}

func (r *replica) Compact(rev int64) {
	defer r.alone()()
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.compacts = append(r.compacts, rev)
}

func (r *replica) ReceiveSnapshot(int64) (heliograph.SnapshotReceiver, error) {
	defer r.alone()()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.receiving {
		return nil, errors.New("another snapshot is being received")
	}
	r.receiving, r.received = true, nil
	return (*receiver)(r), nil
}

func (r *replica) ApplyLeases(c heliograph.LeaseChange) error {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.applied == 0 {
		return heliograph.ErrNotReady
	}
	slices.SortFunc(c.Put, func(a, b heliograph.Lease) int { return int(a.ID - b.ID) })
	slices.Sort(c.Removed)
	r.leases = append(r.leases, c)
	return nil
}

func (r *replica) SetAuth(enabled bool, revision uint64) error {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = append(r.auth, wire.Heartbeat{AuthKnown: true, AuthEnabled: enabled, AuthRevision: revision})
	return nil
}

func (r *replica) Adopt(to heliograph.Lineage) error {
	defer r.alone()()
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.adoptErr != nil {
		return r.adoptErr
	}
	r.adopted = append(r.adopted, to)
	r.origin = to.Origin
	return nil
}

func (r *replica) Lineage() heliograph.Lineage { r.mu.Lock(); defer r.mu.Unlock(); return r.lineage }

type receiver replica

func (r *receiver) WriteChunk(offset int64, p []byte) error {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset != int64(len(r.received)) {
		return errors.New("wrong offset")
	}
	r.received = append(r.received, p...)
	return nil
}

func (r *receiver) Commit(size int64, sum [32]byte, from heliograph.Origin) (int64, error) {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	if size != int64(len(r.received)) || sum != sha256.Sum256(r.received) {
		return 0, errors.New("wrong size or SHA-256")
	}
	rev := int64(binary.BigEndian.Uint64(r.received))
	if r.installAs != 0 {
		rev = r.installAs
	}
	r.receiving = false
	r.origin, r.applied, r.durable = from, rev, rev
	r.installs++
	return rev, nil
}

func (r *receiver) Abort() error {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receiving, r.received = false, nil
	r.aborts++
	return nil
}

// reporter records what a link says of itself.
type reporter struct {
	bell *bell

	mu         sync.Mutex
	connecting []string
	connected  []string
	lost       []error
	lostAt     []time.Time
	applied    []int64
	progress   [][2]int64
	head       int64
	compacted  int64
	staleness  time.Duration
	why        string
	heardStale time.Duration // what staleness was at the last Heard
}

func (r *reporter) note(f func()) {
	defer r.bell.ring()
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *reporter) Connecting(addr string) {
	r.note(func() { r.connecting = append(r.connecting, addr) })
}

func (r *reporter) Connected(addr string) {
	r.note(func() { r.connected = append(r.connected, addr) })
}

func (r *reporter) Bootstrapping(done, total int64) {
	r.note(func() { r.progress = append(r.progress, [2]int64{done, total}) })
}
func (r *reporter) Heard(head, compacted int64) {
	r.note(func() { r.head, r.compacted, r.heardStale = head, compacted, r.staleness })
}
func (r *reporter) Applied(rev int64) { r.note(func() { r.applied = append(r.applied, rev) }) }

func (r *reporter) Lost(err error) {
	r.note(func() { r.lost, r.lostAt = append(r.lost, err), append(r.lostAt, time.Now()) })
}

func (r *reporter) Upstream(staleness time.Duration, why string) {
	r.note(func() { r.staleness, r.why = staleness, why })
}

// peers are those that were followed, in order.
func (r *reporter) peers() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.connected)
}

// losses returns every error reported so far.
func (r *reporter) losses() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lost)
}

// snapshotOf is a snapshot of the given size that the recording replica takes
// for one at rev.
func snapshotOf(rev int64, bytes int) []byte {
	b := make([]byte, bytes)
	for i := range b {
		b[i] = byte(i * 7)
	}
	binary.BigEndian.PutUint64(b, uint64(rev))
	return b
}

func key(rev, sub int64) []byte { return heliograph.RevisionKey{Main: rev, Sub: sub}.Append(nil) }

// entries is a frame with one record for each revision.
func entries(t *testing.T, head int64, revs ...int64) []byte {
	t.Helper()
	var e wire.EntriesEncoder
	for _, rev := range revs {
		if err := e.Add(key(rev, 0), []byte("value")); err != nil {
			t.Fatal(err)
		}
	}
	return e.AppendFrame(nil, head, false, nil)
}

// upTo is a frame with the revisions from first to last.
func upTo(t *testing.T, first, last int64) []byte {
	t.Helper()
	var revs []int64
	for rev := first; rev <= last; rev++ {
		revs = append(revs, rev)
	}
	return entries(t, last, revs...)
}

// running is a link whose Run is under way.
type running struct {
	*link.Link
	stop func(error)
	done chan struct{}
	err  error
}

// wait returns what Run returned.
func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-r.done:
		return r.err
	case <-time.After(time.Minute):
		t.Fatal("Run does not return")
		return nil
	}
}

// gathered are the values of a registry: name, or name/label value.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}
