package link

import (
	"context"
	"time"
)

// Answers returns nil if a source is there just now that has a history to send, be it
// another than the replica's; else why none is known. It makes a connection of its
// own for one handshake, whether Run runs or not, and waits until ctx ends, shared out
// evenly among the addresses.
func (l *Link) Answers(ctx context.Context) (err error) {
	for i, host := range l.cfg.Address.Hosts {
		if err = l.answersAt(ctx, host, len(l.cfg.Address.Hosts)-i); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (l *Link) answersAt(ctx context.Context, host string, left int) error {
	if end, ok := ctx.Deadline(); ok {
		timed, cancel := context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
		defer cancel()
		ctx = timed
	}
	targets, err := l.resolve(ctx, host)
	for _, t := range targets {
		_, err = l.visit(ctx, t, l.introduce, func(*session) error { return nil })
		if err == nil || classify(err) == fatal { // it has another one
			return nil
		}
	}
	return err
}

// visit says hello to t over a connection of its own, and does something with what comes
// of it, which nobody runs. It reports whether somebody is there.
func (l *Link) visit(ctx context.Context, t target, introduce introduction, do func(*session) error) (met bool, err error) {
	conn, err := l.dial(ctx, t)
	if err != nil {
		return false, explain(t.String(), l.cfg.Address.Cluster, err)
	}
	s, err := l.greet(ctx, conn, t, introduce)
	if err == nil {
		err = do(s)
	}
	err = explain(t.String(), l.cfg.Address.Cluster, err)
	code := closeCode(ctx, err)
	if cerr := conn.close(code, code.String()); cerr != nil {
		l.cfg.Log.Debug("close", "peer", t.String(), "err", cerr)
	}
	return true, err
}
