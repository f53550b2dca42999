package link

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
)

// rounds is what is known of the rounds over the addresses, for those who ask while
// there is no session. Such a call waits for a session, or for the end of a round
// that began after it: then every address has been tried. Where nobody was there a
// moment ago, that round is a quick one, and begins at once.
type rounds struct {
	changed chan struct{} // closed at each change, and of the link's session
	asking  int           // calls that wait
	begun   int
	ended   int                // the last one that went to its end; 0 if none did
	quick   bool               // the round under way is one
	hurry   context.CancelFunc // ends what a round that is not quick waits for; nil if it waits for nothing
	hurried bool               // it was called in the round under way
	gone    time.Time          // when a round ended that was not quick, with nobody there; zero if somebody was since
	last    error              // why an address failed in the round under way: one where somebody is, if there is one
	there   bool               // last is such a one
	err     error              // what the round that ended comes to
	dials   int                // of the round under way
	size    int                // dials of the last round that was not quick and went to its end
	rtt     time.Duration      // of the last session; 0 if there was none
	rttTo   target             // whom it was with
	stopped bool               // Run has returned
}

const (
	// quickDial is how long a quick round waits for the source of the last session,
	// beside three round trips: enough for whoever is there, and for one packet lost.
	// mostQuickDial is how long it waits at most, and for every other address: enough
	// for the other end of the earth.
	quickDial     = 500 * time.Millisecond
	mostQuickDial = time.Second
	// gonePause bounds the wait before the next try where nobody was there.
	gonePause = 5 * time.Second
	goneSlack = time.Second
)

// errHurried ends a round, for a quick one.
var errHurried = errors.New("somebody asks")

// justGone reports whether nobody was there when every address was last given its
// time, so lately that there was time since for a pause, for such a round that was
// ended for a quick one, and for another.
func (l *Link) justGone() bool {
	within := gonePause + goneSlack
	for range max(l.rounds.size, len(l.cfg.Address.Hosts)) {
		within += l.cfg.DialTimeout + mostQuickDial + l.cfg.DialTimeout
	}
	return time.Since(l.rounds.gone) < within
}

func (r *rounds) changeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// running says that Run has begun, or, with its error, that it returns.
func (l *Link) running(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rounds.stopped = err != nil
	if err != nil {
		l.lost = err
	}
	l.rounds.changeLocked()
}

func (l *Link) roundBegins() {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.rounds
	r.begun++
	r.quick, r.hurried = (r.hurried || r.asking > 0) && l.justGone(), false
	r.last, r.there, r.dials = nil, false, 0
}

// waiting returns the context for t being dialled in a round, or for a name being looked
// up if t is zero, and what to call when that is done, which reports whether the round
// is to end for a quick one.
func (l *Link) waiting(ctx context.Context, t target) (_ context.Context, done func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.rounds
	if t.addr != nil {
		r.dials++
	}
	var cancel context.CancelFunc
	if r.quick {
		most := mostQuickDial
		if r.rtt > 0 && t.same(r.rttTo) {
			most = min(most, quickDial+3*r.rtt)
		}
		ctx, cancel = context.WithTimeout(ctx, most)
	} else {
		ctx, cancel = context.WithCancel(ctx)
		r.hurry = cancel
	}
	return ctx, func() bool {
		cancel()
		l.mu.Lock()
		defer l.mu.Unlock()
		r.hurry = nil
		return r.hurried
	}
}

// tried says why an address is not followed, and whether somebody may be there.
func (l *Link) tried(err error, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.rounds.there {
		l.rounds.last, l.rounds.there = err, there
	}
}

func (l *Link) roundEnds() {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.rounds
	r.ended, r.err = r.begun, fmt.Errorf("%w: %w", ErrDisconnected, r.last)
	if r.there {
		r.gone = time.Time{}
	} else {
		r.err = &heliograph.UnansweredError{Err: r.err}
		if !r.quick {
			r.gone, r.size = time.Now(), r.dials
		}
	}
	r.changeLocked()
}

// nobody reports whether nobody is known to be there, and whether the round that has
// ended was a quick one.
func (l *Link) nobody() (nobody, quick bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.rounds.gone.IsZero(), l.rounds.quick
}

// asking reports whether somebody waits for a session.
func (l *Link) asking() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rounds.asking > 0
}

// connected returns the session, which it has tried at once if there is none, or
// why there is none.
func (l *Link) connected(ctx context.Context) (*session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.rounds
	if l.session != nil {
		return l.session, nil
	}
	if r.asking == maxReads {
		return nil, fmt.Errorf("%w: %d calls wait for it already", ErrDisconnected, maxReads)
	}
	r.asking++
	defer func() { r.asking-- }()
	select {
	case l.retry <- struct{}{}:
	default:
	}
	if r.hurry != nil && l.justGone() {
		r.hurried = true
		r.hurry()
	}
	for after := r.begun; ; {
		switch {
		case l.session != nil:
			return l.session, nil
		case r.stopped:
			return nil, fmt.Errorf("%w: %w", ErrDisconnected, l.lost)
		case r.ended > after:
			return nil, r.err
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w (%w)", ErrDisconnected, l.lost, context.Cause(ctx))
		}
		changed := r.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		l.mu.Lock()
	}
}

// ReadIndex asks the source for the newest revision of the etcd at the head of the
// chain; a replica that has applied it can answer a linearizable read that began
// before the call. Without a connection it has one tried at once, though not more
// often than once a second, and waits until every address has been tried, for a second
// each at most where nobody was there a moment ago; then it fails with
// [ErrDisconnected] and why. If the source has no answer, the other addresses are
// asked. It waits as long as ctx allows, and for Config.ReadTimeout if that has no
// deadline. An error that holds a *heliograph.UnansweredError says that nothing has
// answered at any address: not the origin, or nobody on the way to it.
func (l *Link) ReadIndex(ctx context.Context) (int64, error) {
	rev, err := l.readIndex(ctx)
	if err != nil {
		l.metrics.readIndex.WithLabelValues("failed").Inc()
		return 0, err
	}
	l.metrics.readIndex.WithLabelValues("ok").Inc()
	return rev, nil
}

func (l *Link) readIndex(ctx context.Context) (int64, error) {
	wait := l.cfg.ReadTimeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait,
		fmt.Errorf("no answer from %s within %s: %w", l.cfg.Address.Cluster, wait.Round(time.Millisecond), context.DeadlineExceeded))
	defer cancel()
	for {
		s, err := l.connected(ctx)
		if err != nil {
			return 0, err
		}
		rev, err := s.reads.ask(ctx)
		if _, nobody := errors.AsType[*heliograph.UnansweredError](err); nobody {
			return l.elsewhere(ctx, s, err)
		}
		// Where the connection has ended meanwhile, the next one is asked.
		if err == nil || !errors.Is(err, ErrDisconnected) || ctx.Err() != nil {
			return rev, err
		}
	}
}
