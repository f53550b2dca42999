package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// Link follows one source. Its methods are safe for concurrent use, except that
// Run runs once at a time.
type Link struct {
	cfg     Config
	metrics *metrics

	// Run's alone.
	followed  time.Time // when a source was last followed; zero if none was since Run began
	attempted time.Time // when the last attempt began
	due       time.Time // where nobody is there: when the next round is due that is not quick
	first     string    // the host that the next round begins with; empty: as they stand

	retry  chan struct{} // capacity 1: somebody asks, and there is no session
	others others

	mu      sync.Mutex
	session *session // nil while not connected
	lost    error    // why not
	path    []string // as last heard
	rounds  rounds
}

// New checks cfg and returns a link that does nothing until Run.
func New(cfg Config) (*Link, error) {
	cfg, err := cfg.resolved()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	l := &Link{cfg: cfg, metrics: m, lost: errors.New("no connection has been tried yet"), retry: make(chan struct{}, 1)}
	l.rounds.changed = make(chan struct{})
	l.others.turn = make(chan struct{}, 1)
	return l, nil
}

// Run follows the source until ctx ends, whose cause it returns, or until the
// histories have diverged, which it returns as a *heliograph.DivergedError: at once
// if the replica says so, and if one of several addresses does, when the others have
// been tried and none was followed in the last Config.SlowRetry. Everything else is
// reported and tried again. When Run returns, all that it started has stopped.
func (l *Link) Run(ctx context.Context) error {
	retry := newBackoff(&l.cfg)
	l.running(nil)
	l.followed = time.Time{}
	for {
		if err := l.round(ctx, retry); err != nil {
			l.running(err)
			return err
		}
	}
}

// round tries every address once, in turn. An address that does not answer, is
// behind, or has to be mended by somebody, hands over to the next at once; the wait for
// those comes at the end. A source that did answer is left for a while first,
// or a whole herd of mirrors would run from one address to the next.
func (l *Link) round(ctx context.Context, retry *backoff) error {
	owed := none     // the wait for those passed over
	var mend error   // what somebody has to mend: stays in sight to the end
	var shown error  // the last error shown
	var differ error // what a source said whose history is another
	others := false  // some address did not say so
	l.roundBegins()
	for _, host := range l.hosts() {
		targets, err := l.find(ctx, host)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errHurried) {
			return nil
		}
		if err != nil {
			shown = l.failed(host, fmt.Errorf("%s: %w", host, err))
			l.tried(shown, !gone(err))
			owed, others = sooner(owed, classify(err)), true
			continue
		}
		for _, t := range targets {
			// A second try for a source that asked for it.
			for again := true; again; {
				out := l.follow(ctx, t)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if errors.Is(out.err, errHurried) {
					return nil
				}
				retry.ended(out.lived, out.progressed)
				shown = l.failed(t.String(), out.err)
				l.tried(shown, out.met || !gone(out.err))
				c := classify(out.err)
				again = c == quick && !retry.wasQuick
				if out.followed {
					l.followed = time.Now()
				}
				if o, ok := errors.AsType[*overtakenError](out.err); ok {
					l.first = o.to.host
					return nil
				}
				switch {
				case c == fatal && out.followed:
					return l.diverged(out.err)
				case c == fatal:
					differ, c = out.err, slow
				case !again:
					others = true
				}
				if c == slow {
					mend = shown
				}
				if c == slow || !out.answered {
					owed = sooner(owed, c)
					break
				}
				owed = none
				if !l.pause(ctx, c, retry.next(c)) {
					return context.Cause(ctx)
				}
			}
		}
	}
	l.roundEnds()
	// One of several may be wrong, and the one that was followed only away for a moment.
	if differ != nil && (!others || time.Since(l.followed) >= l.cfg.SlowRetry) {
		return l.diverged(differ)
	}
	if owed == none {
		return nil
	}
	if mend != nil && mend != shown { //nolint:errorlint // this very error, not one like it
		l.show(mend)
	}
	if !l.pause(ctx, owed, l.untilNext(owed, retry)) {
		return context.Cause(ctx)
	}
	return nil
}

// untilNext returns how long to wait after a round that comes to an error of class c.
// A quick round does not put the next one off.
func (l *Link) untilNext(c class, retry *backoff) time.Duration {
	nobody, quick := l.nobody()
	if c != normal || !nobody {
		return retry.next(c)
	}
	if !quick {
		l.due = time.Now().Add(retry.nextWithin(c, gonePause))
	}
	return max(time.Until(l.due), retryEvery-time.Since(l.attempted))
}

// hosts returns those of the address in the order in which a round tries them.
func (l *Link) hosts() []string {
	hosts := slices.Clone(l.cfg.Address.Hosts)
	if i := slices.Index(hosts, l.first); i > 0 {
		hosts = slices.Insert(slices.Delete(hosts, i, i+1), 0, l.first)
	}
	l.first = ""
	return hosts
}

// sooner returns the class that is tried again sooner.
func sooner(a, b class) class {
	if a == none {
		return b
	}
	return min(a, b)
}

// failed notes, counts, logs and shows why an address is not followed.
func (l *Link) failed(peer string, err error) error {
	l.metrics.lost.WithLabelValues(reason(err)).Inc()
	if r, ok := errors.AsType[*heliograph.RefusedError](err); ok {
		l.metrics.refusals.WithLabelValues(r.Code.String()).Inc()
	}
	if classify(err) >= slow {
		l.cfg.Log.Error("source cannot be followed", "peer", peer, "err", err)
	} else {
		l.cfg.Log.Warn("source lost", "peer", peer, "err", err)
	}
	l.show(err)
	return err
}

func (l *Link) show(err error) {
	l.mu.Lock()
	l.lost = err
	l.mu.Unlock()
	l.cfg.Reporter.Lost(err)
}

// outcome is how following one address ended.
type outcome struct {
	err        error
	met        bool          // somebody is there
	answered   bool          // a heliograph answered the hello, and is not behind
	followed   bool          // it accepted the mirror
	lived      time.Duration // as an accepted mirror
	progressed bool          // the replica came further
}

// find resolves a host of the address.
func (l *Link) find(ctx context.Context, host string) ([]target, error) {
	l.attempted = time.Now()
	timed, done := l.waiting(ctx, target{})
	targets, err := l.resolve(timed, host)
	if done() && err != nil {
		return nil, errHurried
	}
	return targets, err
}

// follow follows the source at t until that ends.
func (l *Link) follow(ctx context.Context, t target) (out outcome) {
	l.cfg.Reporter.Connecting(t.String())
	l.attempted = time.Now()
	timed, done := l.waiting(ctx, t)
	conn, err := l.dial(timed, t)
	if done() && err != nil {
		return outcome{err: errHurried}
	}
	if err != nil {
		l.metrics.dials.WithLabelValues("failed").Inc()
		out.err = explain(t.String(), l.cfg.Address.Cluster, err)
		return out
	}
	l.metrics.dials.WithLabelValues("ok").Inc()
	// The one place where a connection is closed after its session: no stream
	// of it is in use any more.
	defer func() {
		code := closeCode(ctx, out.err)
		if err := conn.close(code, code.String()); err != nil {
			l.cfg.Log.Debug("close", "peer", t.String(), "err", err)
		}
	}()
	out.met = true
	s, err := l.greet(ctx, conn, t, l.introduce)
	if err != nil {
		out.err = explain(t.String(), l.cfg.Address.Cluster, err)
		_, out.answered = errors.AsType[*heliograph.RefusedError](out.err)
		return out
	}
	began := time.Now()
	l.begin(s)
	err = s.run(ctx)
	out = outcome{
		err:        explain(t.String(), l.cfg.Address.Cluster, err),
		met:        true,
		answered:   true,
		followed:   true,
		lived:      time.Since(began),
		progressed: s.applied.Load() > s.startRev,
	}
	l.end(s, out.err)
	return out
}

// begin makes s the connected session.
func (l *Link) begin(s *session) {
	l.mu.Lock()
	l.session = s
	l.rounds.gone = time.Time{}
	l.rounds.changeLocked()
	l.mu.Unlock()
	l.setPath(s.ack.Path)
	l.metrics.connected.Set(1)
	l.cfg.Log.Info("following", "peer", s.peer, "rev", s.plan.from-1, "snapshot", s.plan.snapshot)
	l.cfg.Reporter.Connected(s.peer)
	if s.ack.HeadLSN > 0 {
		l.cfg.Reporter.Heard(s.ack.HeadLSN, s.ack.CompactLSN)
	}
}

// end takes s back; callers that wait for its answers are told why.
func (l *Link) end(s *session, err error) {
	l.mu.Lock()
	l.session, l.lost = nil, err
	l.rounds.rtt, l.rounds.rttTo = s.conn.ConnectionStats().SmoothedRTT, s.target
	l.mu.Unlock()
	l.metrics.connected.Set(0)
	s.reads.close(fmt.Errorf("%w: %w", ErrDisconnected, err))
	s.verifies.close(fmt.Errorf("%w: %w", ErrDisconnected, err))
}

// setPath keeps what a source says stands above it. One that says nothing
// leaves what is known.
func (l *Link) setPath(path []string) {
	if len(path) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.path = path
}

// Path returns the node ids from the origin's source node down to the source,
// as last heard, without this node's own. It is empty before the first
// connection. The slice is the caller's.
func (l *Link) Path() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.path)
}

// introduction makes a hello, and says which position is in it.
type introduction func() (wire.Hello, heliograph.Position, error)

// introduce is the hello of a mirror that wants to follow.
func (l *Link) introduce() (wire.Hello, heliograph.Position, error) {
	if l.cfg.Mode == heliograph.Sync && l.cfg.Replica.Applied() > 0 {
		// The hello is an acknowledgement, too.
		if _, err := l.cfg.Replica.Commit(); err != nil {
			return wire.Hello{}, heliograph.Position{}, local("commit before the hello", err)
		}
	}
	at := heliograph.Position{Origin: l.cfg.Replica.Origin(), Rev: l.cfg.Replica.Applied()}
	return prove(hello(l.cfg.Address, l.cfg.NodeID, at), l.cfg.Replica), at, nil
}

// greet says hello, which introduce makes, and reads the answer.
func (l *Link) greet(ctx context.Context, conn *connection, t target, introduce introduction) (*session, error) {
	first, at, err := introduce()
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, l.cfg.AckTimeout)
	defer cancel()
	control, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the control stream: %w", err)
	}
	// Ends the read and the write below when ctx does.
	stop := context.AfterFunc(ctx, func() { _ = control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := control.Write(first.AppendFrame(nil)); err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	frames := wire.NewReader(control, wire.Control)
	kind, payload, err := frames.Next()
	if err != nil {
		return nil, fmt.Errorf("answer to the hello: %w", brokenFrame(kind, err))
	}
	if kind != wire.TypeHelloAck {
		return nil, broken("a %s frame instead of an answer to the hello", kind)
	}
	ack, err := wire.DecodeHelloAck(payload)
	if err != nil {
		return nil, brokenPayload(kind, err)
	}
	if !ack.Accepted || at.Origin.IsZero() {
		// Accepted over a fork, the source has shown how its history came from ours.
		if err := l.cfg.behind(ack.Origin); err != nil {
			return nil, err
		}
	}
	plan, err := checkAck(l.cfg.Address, l.cfg.NodeID, at, ack)
	if err != nil {
		return nil, err
	}
	if !stop() {
		return nil, fmt.Errorf("answer to the hello: %w", context.Cause(ctx))
	}
	return newSession(l, t, conn, control, frames, at.Rev, ack, plan), nil
}
