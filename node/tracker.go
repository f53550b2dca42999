package node

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
)

// Thresholds of the status machine.
const (
	// silentAfter is when a connected upstream that says nothing is reported:
	// six heartbeats, and early enough to say so within 5 s.
	silentAfter = 3 * time.Second
	// stuckAfter is how long revisions may wait with none applied.
	stuckAfter = 4 * time.Second
	// degradedLag is the lag above which a mirror is Degraded.
	degradedLag = 5 * time.Second
	// disconnectedAfter is how long an upstream that was heard from may be
	// silent before it counts as gone.
	disconnectedAfter = 30 * time.Second
	// caughtUpLag is the lag at which catching up ends although a busy source
	// is always a few revisions ahead.
	caughtUpLag = time.Second
	// maxMarks bounds the memory of heads heard; two heartbeats a second fill
	// it in half an hour of standstill.
	maxMarks = 4096
)

// mark is a head that the upstream reported before it was applied.
type mark struct {
	rev   int64
	at    time.Time // when it was heard
	fresh time.Time // the origin had nothing newer then; zero if not known
}

// Tracker is the status machine of one database. It hears from an upstream (it
// is a [heliograph.Reporter]) and answers with what a person wants to know. All
// times are of the node's own monotonic clock. It is safe for concurrent use.
type Tracker struct {
	now func() time.Time

	mu        sync.Mutex
	addr      string
	connected bool
	lost      error // why there is no connection; nil before the first failure
	diverged  error
	heardAt   time.Time // last sign of the upstream, in any connection

	bootstrapping bool
	done, total   int64

	applied   int64
	appliedAt time.Time
	head      int64
	known     int64 // the newest revision that the upstream has told of; 0 if it never did
	compacted int64
	marks     []mark // heads above applied, in order
	goal      int64  // the first head heard in this connection; 0 before
	caughtUp  bool   // reached the goal, and the head but for a moment's lag

	unheardStale  time.Duration // what upstreamStale begins with in a connection
	upstreamStale time.Duration // as the upstream reports of itself; -1 unknown
	upstreamWhy   string
	freshAt       time.Time // everything the origin had then is applied

	rate rate // revisions or bytes per second
}

// NewTracker returns a tracker of a replica at the applied revision. The
// upstream is either the origin itself or a node that is asked how old its data
// may be ([Tracker.Upstream]).
func NewTracker(applied int64, upstreamIsOrigin bool) *Tracker {
	t := &Tracker{now: time.Now, applied: applied, head: applied}
	if !upstreamIsOrigin {
		t.unheardStale = -1
	}
	return t
}

// Connecting implements [heliograph.Reporter].
func (t *Tracker) Connecting(addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addr, t.connected = addr, false
}

// Connected implements [heliograph.Reporter].
func (t *Tracker) Connected(addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addr, t.connected, t.lost = addr, true, nil
	t.goal, t.caughtUp = 0, false
	t.heardAt, t.appliedAt = t.now(), t.now()
	t.upstreamStale, t.upstreamWhy = t.unheardStale, ""
	t.rate = rate{}
}

// Bootstrapping implements [heliograph.Reporter].
func (t *Tracker) Bootstrapping(done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.bootstrapping {
		t.rate = rate{}
	}
	t.bootstrapping, t.done, t.total = true, done, total
	t.heardAt = t.now()
	t.rate.add(t.heardAt, done)
}

// Heard implements [heliograph.Reporter].
func (t *Tracker) Heard(head, compacted int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	t.heardAt = now
	t.compacted = max(t.compacted, compacted)
	t.head, t.known = max(t.head, head), max(t.known, head)
	if t.goal == 0 {
		t.goal = head
	}
	var fresh time.Time
	if t.upstreamStale >= 0 {
		fresh = now.Add(-t.upstreamStale)
	}
	if head <= t.applied {
		t.caughtUp = true
		t.freshen(fresh)
		return
	}
	if n := len(t.marks); n > 0 && t.marks[n-1].rev >= head {
		return
	}
	if len(t.marks) == maxMarks {
		t.thin()
	}
	t.marks = append(t.marks, mark{rev: head, at: now, fresh: fresh})
}

// thin halves the marks. A mark that goes leaves its times to the next one, so
// that lag and staleness can only be reported too large.
func (t *Tracker) thin() {
	kept := t.marks[:0]
	for i := 0; i+1 < len(t.marks); i += 2 {
		kept = append(kept, mark{rev: t.marks[i+1].rev, at: t.marks[i].at, fresh: t.marks[i].fresh})
	}
	t.marks = kept
}

func (t *Tracker) freshen(at time.Time) {
	if at.After(t.freshAt) {
		t.freshAt = at
	}
}

// Upstream says how old the upstream's own data may be (-1: it cannot tell), and
// why it does not follow its own upstream ("": it does). A link calls it before
// the Heard of the same heartbeat.
func (t *Tracker) Upstream(staleness time.Duration, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.upstreamStale, t.upstreamWhy = staleness, why
}

// Applied implements [heliograph.Reporter].
func (t *Tracker) Applied(rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.bootstrapping {
		t.bootstrapping, t.done, t.total, t.rate = false, 0, 0, rate{}
	}
	t.applied, t.appliedAt = rev, now
	t.head = max(t.head, rev)
	n := 0
	for n < len(t.marks) && t.marks[n].rev <= rev {
		t.freshen(t.marks[n].fresh)
		n++
	}
	if n > 0 {
		t.marks = append(t.marks[:0], t.marks[n:]...)
	}
	if t.goal > 0 && rev >= t.goal && t.lagLocked(now) < caughtUpLag {
		t.caughtUp = true
	}
	t.rate.add(now, rev)
}

// Lost implements [heliograph.Reporter].
func (t *Tracker) Lost(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connected, t.lost = false, err
	t.bootstrapping, t.done, t.total = false, 0, 0
}

// Diverged stops the machine: the histories differ.
func (t *Tracker) Diverged(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.diverged, t.connected, t.bootstrapping = err, false, false
}

// Reset begins anew: the replica holds nothing any more.
func (t *Tracker) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost, t.diverged, t.connected = nil, nil, false
	t.bootstrapping, t.done, t.total = false, 0, 0
	t.applied, t.head, t.known, t.compacted, t.goal = 0, 0, 0, 0, 0
	t.marks, t.caughtUp = nil, false
	t.heardAt, t.freshAt, t.rate = time.Time{}, time.Time{}, rate{}
}

// lagLocked is how long the oldest known revision has been waiting.
func (t *Tracker) lagLocked(now time.Time) time.Duration {
	if len(t.marks) == 0 {
		return 0
	}
	return max(0, now.Sub(t.marks[0].at))
}

// View is what a Tracker knows at one moment.
type View struct {
	State     heliograph.State
	Why       string // empty only when following
	Addr      string // of the upstream, as last tried
	Head      int64
	Known     int64         // the newest revision that the upstream has told of; 0 if it never did
	Contact   time.Duration // since the upstream was heard from; -1 if it never was
	Alive     bool          // the upstream is connected and was heard just now
	Fresh     bool          // so it is, and it is followed: no snapshot is being received
	Compacted int64
	Lag       time.Duration
	Staleness time.Duration // -1 if it was never up to date
	ETA       time.Duration // -1 if not known
	Done      int64         // bytes of the snapshot being received
	Total     int64
}

// View returns what the tracker knows now.
func (t *Tracker) View() View {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	v := View{
		Addr: t.addr, Head: t.head, Compacted: t.compacted, Lag: t.lagLocked(now),
		Known: t.known, Contact: -1, Staleness: -1, ETA: -1, Done: t.done, Total: t.total,
		Alive: t.connected && now.Sub(t.heardAt) < silentAfter,
	}
	v.Fresh = v.Alive && !t.bootstrapping
	if !t.heardAt.IsZero() {
		v.Contact = max(0, now.Sub(t.heardAt))
	}
	if !t.freshAt.IsZero() {
		v.Staleness = max(0, now.Sub(t.freshAt))
	}
	v.State, v.Why = t.stateLocked(now)
	switch v.State {
	case heliograph.Bootstrapping:
		v.ETA = t.rate.eta(now, t.total)
	case heliograph.CatchingUp:
		v.ETA = t.rate.eta(now, t.head)
	}
	return v
}

func (t *Tracker) stateLocked(now time.Time) (heliograph.State, string) {
	quiet := now.Sub(t.heardAt)
	switch {
	case t.diverged != nil:
		return heliograph.Diverged, sentence(t.diverged)
	case !t.connected:
		why := "connecting to " + t.addr
		if t.addr == "" {
			why = "starting"
		}
		if t.lost != nil {
			why = t.lost.Error()
		}
		if t.heardAt.IsZero() || quiet >= disconnectedAfter || misconfigured(t.lost) {
			return heliograph.Disconnected, why
		}
		return heliograph.Degraded, fmt.Sprintf("reconnecting, last heard from the upstream %s ago: %s", round(quiet), why)
	case quiet >= disconnectedAfter:
		return heliograph.Disconnected, fmt.Sprintf("nothing heard from %s for %s", t.addr, round(quiet))
	case quiet >= silentAfter:
		return heliograph.Degraded, fmt.Sprintf("nothing heard from %s for %s", t.addr, round(quiet))
	case t.bootstrapping:
		return heliograph.Bootstrapping, fmt.Sprintf("receiving a snapshot from %s", t.addr)
	case t.upstreamWhy != "":
		return heliograph.Degraded, fmt.Sprintf("%s does not follow its own upstream: %s", t.addr, t.upstreamWhy)
	}
	lag, behind := t.lagLocked(now), t.head-t.applied
	stuck := min(lag, now.Sub(t.appliedAt))
	switch {
	case behind > 0 && stuck >= stuckAfter:
		return heliograph.Degraded, fmt.Sprintf("not moving: revision %d has been waiting for %s", t.applied+1, round(stuck))
	case !t.caughtUp:
		return heliograph.CatchingUp, fmt.Sprintf("%d revisions behind", behind)
	case lag > degradedLag:
		return heliograph.Degraded, fmt.Sprintf("lagging by %s, %d revisions behind", round(lag), behind)
	}
	return heliograph.Following, ""
}

// sentence is what a divergence says, without the word, which the state says.
func sentence(err error) string {
	d, ok := errors.AsType[*heliograph.DivergedError](err)
	switch {
	case !ok:
		return err.Error()
	case d.Rev == 0:
		return d.Why
	}
	return fmt.Sprintf("at revision %d: %s", d.Rev, d.Why)
}

// misconfigured reports whether a person has to change something before the
// connection can be made.
func misconfigured(err error) bool {
	var refused *heliograph.RefusedError
	var config *link.ConfigurationError
	return errors.As(err, &refused) && refused.Code.Configuration() || errors.As(err, &config)
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }

// rate estimates how fast a number grows, over about ten seconds.
type rate struct {
	at    time.Time
	value int64
	per   float64 // per second; 0 before the second sample
}

// rateEvery is how far apart samples are taken.
const rateEvery = 500 * time.Millisecond

func (r *rate) add(now time.Time, value int64) {
	if r.at.IsZero() {
		r.at, r.value = now, value
		return
	}
	d := now.Sub(r.at)
	if d < rateEvery {
		return
	}
	sample := float64(value-r.value) / d.Seconds()
	if r.per == 0 {
		r.per = sample
	} else {
		weight := min(1, d.Seconds()/10)
		r.per += weight * (sample - r.per)
	}
	r.at, r.value = now, value
}

// eta is how long it takes to reach target; -1 if that cannot be told.
func (r *rate) eta(now time.Time, target int64) time.Duration {
	left := float64(target-r.value) - r.per*now.Sub(r.at).Seconds()
	if r.per <= 0 || target <= 0 {
		return -1
	}
	return time.Duration(max(0, left/r.per) * float64(time.Second))
}
