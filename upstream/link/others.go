package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// Several addresses are nodes that mirror the same etcd. One that has lost it is there
// all the same, and is followed; whether the etcd answers, and who still follows it,
// the others know.

// others asks the addresses that are not followed. Whoever has its turn asks.
type others struct {
	turn  chan struct{} // capacity 1
	began time.Time     // when the last asking began that came to an end
	but   target        // whom it left out
	found other         // what came of it
	err   error
}

// other is a node that has answered.
type other struct {
	target  target
	rev     int64 // the newest of the etcd at the head of the chain
	follows bool  // it follows its own upstream, and is not behind this mirror
}

// maxAsked bounds how many are asked at once.
const maxAsked = 16

// errAlone says that there are no others.
var errAlone = errors.New("no other address is known")

// askOthers asks the other addresses than that of s, at once, for the newest revision,
// and returns the answer of the first that follows, or else one of the others. It waits
// until each has answered or failed, or ctx ends. Calls share what began after them. An
// error that holds a *heliograph.UnansweredError says that nothing has answered at any.
func (l *Link) askOthers(ctx context.Context, s *session) (other, error) {
	asked := time.Now()
	select {
	case l.others.turn <- struct{}{}:
		defer func() { <-l.others.turn }()
	case <-ctx.Done():
		return other{}, context.Cause(ctx)
	}
	if l.others.began.After(asked) && l.others.but.same(s.target) {
		return l.others.found, l.others.err
	}
	began := time.Now()
	found, err := l.askEach(ctx, s)
	if ctx.Err() != nil && err != nil {
		return other{}, fmt.Errorf("%w (%v)", context.Cause(ctx), err) // cut short, it says nothing
	}
	l.others.began, l.others.but, l.others.found, l.others.err = began, s.target, found, err
	return found, err
}

func (l *Link) askEach(parent context.Context, s *session) (best other, _ error) {
	if l.cfg.Replica.Applied() == 0 {
		return best, errors.New("this mirror holds nothing by which others could be compared")
	}
	last, there := errAlone, false // as in rounds
	failed := func(err error, is bool) {
		if !there {
			last, there = err, is
		}
	}
	var targets []target
	for _, host := range l.cfg.Address.Hosts {
		found, err := l.resolve(parent, host)
		if err != nil {
			failed(fmt.Errorf("%s: %w", host, err), !gone(err))
		}
		targets = append(targets, slices.DeleteFunc(found, s.target.same)...)
	}

	type answer struct {
		other
		there bool
		err   error
	}
	ctx, cancel := context.WithCancel(parent)
	answers := make(chan answer, len(targets))
	var work errgroup.Group
	work.SetLimit(maxAsked)
	for _, t := range targets {
		work.Go(func() error {
			found, is, err := l.askOther(ctx, t)
			if err != nil {
				err = fmt.Errorf("%s: %w", t, err)
			}
			answers <- answer{found, is, err}
			return nil
		})
	}
	for range targets {
		switch a := <-answers; {
		case a.err != nil:
			failed(a.err, a.there)
		case !best.follows && (a.follows || best.rev == 0):
			best = a.other
		}
		if best.follows {
			cancel() // the rest
		}
	}
	cancel()
	_ = work.Wait() // it returns no errors
	switch {
	case best.rev > 0:
		return best, nil
	case there || errors.Is(last, errAlone):
		return best, last
	}
	return best, &heliograph.UnansweredError{Err: last}
}

// askOther asks one of the others, over a connection of its own. If that fails it
// reports whether somebody is there, and may have more to say.
func (l *Link) askOther(ctx context.Context, t target) (found other, there bool, err error) {
	met, err := l.visit(ctx, t, l.introduceAsking, func(s *session) (err error) {
		found, err = s.askOnce(ctx)
		return err
	})
	_, nobody := errors.AsType[*heliograph.UnansweredError](err)
	return found, met && !nobody || !met && !gone(err), err
}

// introduceAsking is the hello of a mirror that only asks.
func (l *Link) introduceAsking() (wire.Hello, heliograph.Position, error) {
	at := heliograph.Position{Origin: l.cfg.Replica.Origin(), Rev: l.cfg.Replica.Applied()}
	h := prove(hello(l.cfg.Address, l.cfg.NodeID, at), l.cfg.Replica)
	h.Asks, h.Features = true, nil
	return h, at, nil
}

// askOnce asks over a connection that nobody else uses, and takes nothing from it.
func (s *session) askOnce(ctx context.Context) (found other, err error) {
	if forks := s.plan.lineage.Forks; len(forks) > 0 {
		return found, fmt.Errorf("it mirrors %s, which was promoted from %s", s.plan.lineage.Origin, forks[0].Origin)
	}
	if _, ok := ctx.Deadline(); !ok {
		timed, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
		defer cancel()
		ctx = timed
	}
	stop := context.AfterFunc(ctx, func() { _ = s.control.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request := wire.ReadIndex{WaitMS: waitMS(ctx)}
	if _, err := s.control.Write(request.AppendFrame(nil)); err != nil {
		return found, fmt.Errorf("read index: %w", err)
	}
	found.target = s.target
	for answered, heard := false, false; !answered || !heard; {
		if err := s.control.SetReadDeadline(time.Now().Add(s.cfg.Silence)); err != nil {
			return found, err
		}
		if ctx.Err() != nil { // its deadline may have been overwritten
			return found, fmt.Errorf("read index: %w", context.Cause(ctx))
		}
		kind, payload, err := s.frames.Next()
		if err != nil {
			return found, fmt.Errorf("read index: %w", brokenFrame(kind, err))
		}
		switch kind {
		case wire.TypeReadIndexReply:
			var reply wire.ReadIndexReply
			if reply, err = wire.DecodeReadIndexReply(payload); err == nil {
				a := answerOf(reply)
				found.rev, err, answered = a.rev, a.err, true
				if err == nil && a.rev < s.startRev {
					err = fmt.Errorf("its etcd is at revision %d, and this mirror at %d: it was restored, or is another", a.rev, s.startRev)
				}
			}
		case wire.TypeHeartbeat:
			var h wire.Heartbeat
			if h, err = wire.DecodeHeartbeat(payload); err == nil {
				found.follows, heard = h.Why == "" && h.HeadLSN >= s.startRev, true
				_, err = s.control.Write(s.beat(nil)) // as often as the source: it has to hear of us, too
			}
		case wire.TypeGoodbye:
			var bye wire.Goodbye
			if bye, err = wire.DecodeGoodbye(payload); err == nil {
				err = parted(bye)
			}
		}
		if err != nil {
			return found, brokenPayload(kind, err)
		}
	}
	return found, nil
}

// elsewhere asks the others what the source of s has not been answered, and leaves it
// for one that follows, unless s has just begun.
func (l *Link) elsewhere(ctx context.Context, s *session, why error) (int64, error) {
	found, err := l.askOthers(ctx, s)
	if err == nil {
		if found.follows && !s.copying() && time.Since(s.began) >= s.cfg.Stall {
			s.leave(&overtakenError{s.peer, found.target, why.Error()})
		}
		return found.rev, nil
	}
	if errors.Is(err, errAlone) {
		return 0, why
	}
	if _, nobody := errors.AsType[*heliograph.UnansweredError](err); nobody {
		return 0, fmt.Errorf("%w; and %w", why, err)
	}
	return 0, fmt.Errorf("%v; and of the other addresses: %v", why, err) // that it is unanswered is not known
}

// compare leaves a source that does not follow its own upstream, while one of the
// others does.
func (s *session) compare(ctx context.Context) error {
	for sleep(ctx, s.cfg.Stall+jitter(s.cfg.Stall)) {
		why := s.vigil.strays(time.Now(), s.cfg.Stall)
		if why == "" || s.copying() {
			continue
		}
		found, err := s.link.askOthers(ctx, s)
		switch {
		case err == nil && found.follows:
			return &overtakenError{s.peer, found.target, why}
		case err != nil && ctx.Err() == nil && !errors.Is(err, errAlone):
			s.cfg.Log.Info("the source does not follow, nor does another that could be followed", "peer", s.peer, "why", why, "err", err)
		}
	}
	return nil
}

// copying reports whether a snapshot is on its way, which another source would have to
// send anew.
func (s *session) copying() bool {
	return s.plan.snapshot && s.applied.Load() < s.plan.snapshotRev
}

// overtakenError says that a source is left for another.
type overtakenError struct {
	from string
	to   target
	why  string // from does not follow
}

func (e *overtakenError) Error() string {
	return fmt.Sprintf("%s does not follow its own upstream (%s), and %s does: going over to it", e.from, cut(e.why), e.to)
}
