package etcd

import (
	"context"
	"time"
)

// Answers returns nil if etcd takes a linearizable read just now; else why not. It
// makes a connection of its own, whether Run runs or not, and waits until ctx ends,
// shared out evenly among the endpoints.
func (u *Upstream) Answers(ctx context.Context) (err error) {
	for i, endpoint := range u.cfg.Endpoints {
		if err = u.answersAt(ctx, endpoint, len(u.cfg.Endpoints)-i); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (u *Upstream) answersAt(ctx context.Context, endpoint string, left int) error {
	if end, ok := ctx.Deadline(); ok {
		timed, cancel := context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
		defer cancel()
		ctx = timed
	}
	c, err := u.dial(ctx, endpoint)
	if err != nil {
		return err
	}
	c.close()
	return nil
}
