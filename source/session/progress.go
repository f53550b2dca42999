package session

import "fmt"

// State is where a mirror stands; see the drawing in the package comment.
type State uint8

// The states.
const (
	Snapshot   State = iota // a snapshot is being sent
	CatchingUp              // entries are sent from the history
	Live                    // everything there was has been sent
)

var stateNames = [...]string{"snapshot", "catching-up", "live"}

// String returns the state's name, as status shows it.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Action is what to do next for a mirror.
type Action uint8

// The actions.
const (
	Wait    Action = iota // until there is more to send
	Blocked               // until the mirror acknowledges: the window is full
	Send                  // records from the cursor on
	Gone                  // end the session: the history no longer holds the cursor
)

var actionNames = [...]string{"wait", "blocked", "send", "gone"}

// String returns the action's name.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action %d", uint8(a))
}

// Progress is what the source knows of one accepted mirror. It is not safe for
// concurrent use.
//
// Invariants: durable <= applied <= the last whole revision before the cursor,
// and none of the three ever falls. In Snapshot nothing of the entries has been
// sent and the cursor stands right behind the snapshot. Bytes in flight belong
// to revisions above applied.
type Progress struct {
	state    State
	cursor   Cursor // the next record to send
	snapshot int64  // the snapshot's revision; 0 without one
	applied  int64  // acknowledged; at first what the hello said
	durable  int64  // acknowledged
	window   window
}

// Resume returns the progress of a mirror that has applied a revision and gets
// the entries behind it, with at most windowBytes in flight.
func Resume(applied, windowBytes int64) *Progress {
	return &Progress{
		state:   CatchingUp,
		cursor:  Cursor{Rev: applied + 1},
		applied: applied,
		window:  window{limit: windowBytes},
	}
}

// Bootstrap returns the progress of a mirror that gets a snapshot and the
// entries behind it. held is what it had applied before, which the snapshot
// replaces.
func Bootstrap(snapshot, held, windowBytes int64) *Progress {
	p := Resume(held, windowBytes)
	p.state, p.cursor, p.snapshot = Snapshot, Cursor{Rev: snapshot + 1}, snapshot
	return p
}

// SnapshotSent says that the snapshot's end was handed to the stream.
func (p *Progress) SnapshotSent() {
	if p.state == Snapshot {
		p.state = CatchingUp
	}
}

// Next says what to do. end is where what can be sent ends; at floor and below
// nothing can be read any more.
//
// The window never stops a revision that has begun: the mirror can acknowledge
// it only when it is whole, so half of it would wait for ever.
func (p *Progress) Next(end Cursor, floor int64) Action {
	switch {
	case p.state == Snapshot:
		return Wait
	case p.cursor.Rev <= floor:
		return Gone
	case !p.cursor.Before(end):
		if p.cursor.Sub == 0 {
			p.state = Live
		}
		return Wait
	case p.cursor.Sub == 0 && p.window.full:
		p.state = CatchingUp
		return Blocked
	}
	return Send
}

// CatchUp says that a live mirror is to be fed from the history again.
func (p *Progress) CatchUp() {
	if p.state == Live {
		p.state = CatchingUp
	}
}

// Sending says that the records from the cursor up to another one are about to
// be sent, in a frame of that many bytes. atMS is the time, on any clock that
// does not go back. An error is a mistake of the caller.
func (p *Progress) Sending(from, to Cursor, bytes, atMS int64) error {
	if p.state == Snapshot || from != p.cursor || !from.Before(to) || bytes < 0 {
		return fmt.Errorf("session: %d bytes from %s to %s cannot follow %s in state %s", bytes, from, to, p.cursor, p.state)
	}
	last := to.Whole()
	if to.Sub > 0 {
		last = to.Rev // acknowledged only when the rest of it is
	}
	p.cursor = to
	p.window.add(last, bytes, atMS)
	return nil
}

// Acked takes an acknowledgement and reports whether applied rose. One that
// falls or that claims what was not sent is an error: the mirror is broken. Until
// its snapshot is whole a mirror may go on acknowledging what it had before.
func (p *Progress) Acked(applied, durable int64) (rose bool, err error) {
	switch {
	case durable > applied:
		return false, fmt.Errorf("durable revision %d is above the applied revision %d", durable, applied)
	case !p.Installed() && applied < p.snapshot:
		return false, nil // of what the snapshot is about to replace
	case applied < p.applied || durable < p.durable:
		return false, fmt.Errorf("revisions %d and %d are below %d and %d, which were acknowledged before", applied, durable, p.applied, p.durable)
	case p.state == Snapshot || applied > p.cursor.Whole():
		return false, fmt.Errorf("revision %d was not sent", applied)
	}
	rose = applied > p.applied
	p.applied, p.durable = applied, durable
	p.window.ack(applied)
	return rose, nil
}

// State returns where the mirror stands.
func (p *Progress) State() State { return p.state }

// Cursor returns the place of the next record to send.
func (p *Progress) Cursor() Cursor { return p.cursor }

// Sent returns the last revision that was sent as a whole; in Snapshot what the
// mirror had before.
func (p *Progress) Sent() int64 {
	if p.state == Snapshot {
		return p.applied
	}
	return p.cursor.Whole()
}

// Applied returns the last revision that the mirror's readers see.
func (p *Progress) Applied() int64 { return p.applied }

// Durable returns the last revision that the mirror cannot lose any more.
func (p *Progress) Durable() int64 { return p.durable }

// Installed reports whether the mirror holds its snapshot; true without one.
func (p *Progress) Installed() bool { return p.applied >= p.snapshot }

// InFlight returns the bytes of entries sent beyond what was acknowledged.
func (p *Progress) InFlight() int64 { return p.window.inFlight }

// Oldest returns when the oldest entries in flight were sent, to within 100 ms;
// ok is false if there are none.
func (p *Progress) Oldest() (atMS int64, ok bool) {
	if len(p.window.marks) == 0 {
		return 0, false
	}
	return p.window.marks[0].atMS, true
}
