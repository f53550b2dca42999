package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// watchAuth asks at an interval whether etcd has access control on, until ctx
// ends.
func (u *Upstream) watchAuth(ctx context.Context, c *connection) error {
	ticker := time.NewTicker(u.cfg.LearnInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		u.askAuth(ctx, c)
	}
}

// askAuth asks once, and tells the replica. A failure is logged and ends nothing.
func (u *Upstream) askAuth(ctx context.Context, c *connection) {
	enabled, revision, err := c.auth(ctx)
	if err == nil {
		u.authRevision.Store(revision)
		err = u.cfg.Replica.SetAuth(enabled, revision)
	}
	u.denied(err)
	u.learned(ctx, &u.authTrouble, "access control", err)
}

// denied tells the replica that etcd has access control on if err says so: only
// then is anybody refused.
func (u *Upstream) denied(err error) {
	if _, ok := errors.AsType[*DeniedError](err); !ok {
		return
	}
	if err := u.cfg.Replica.SetAuth(true, u.authRevision.Load()); err != nil {
		u.cfg.Log.Warn("access control not noted", "cluster", u.cfg.Cluster, "err", err)
	}
}

// learned logs the first failure in a row to learn something beside revisions,
// and the success after it.
func (u *Upstream) learned(ctx context.Context, trouble *bool, what string, err error) {
	switch {
	case ctx.Err() != nil || errors.Is(err, errStaleToken): // nothing is wrong
	case err != nil && !*trouble:
		*trouble = true
		u.cfg.Log.Warn("not learned from etcd, following goes on", "cluster", u.cfg.Cluster, "what", what, "err", err)
	case err == nil && *trouble:
		*trouble = false
		u.cfg.Log.Info("learned from etcd again", "cluster", u.cfg.Cluster, "what", what)
	}
}

// auth returns whether etcd has access control on, and the revision of its users
// and roles; 0 if it is too old to tell.
func (c *connection) auth(ctx context.Context) (enabled bool, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.u.cfg.Silence)
	defer cancel()
	client := pb.NewAuthClient(c.client.ActiveConnection())
	resp, err := client.AuthStatus(ctx, &pb.AuthStatusRequest{})
	if status.Code(err) == codes.Unimplemented { // before 3.5
		return c.authByLogin(ctx, client)
	}
	if err != nil {
		return false, 0, fmt.Errorf("ask for its status: %w", c.u.translate(err))
	}
	if err := c.same(resp.Header); err != nil {
		return false, 0, err
	}
	return resp.Enabled, resp.AuthRevision, nil
}

// authByLogin learns it from what etcd says to a login: without access control
// that is an error of its own, whoever logs in.
func (c *connection) authByLogin(ctx context.Context, client pb.AuthClient) (enabled bool, revision uint64, err error) {
	_, err = client.Authenticate(ctx, &pb.AuthenticateRequest{Name: c.u.cfg.Username, Password: c.u.cfg.Password})
	switch known := rpctypes.Error(err); {
	case errors.Is(known, rpctypes.ErrAuthNotEnabled):
		return false, 0, nil
	case err == nil, errors.Is(known, rpctypes.ErrAuthFailed), errors.Is(known, rpctypes.ErrUserEmpty):
		return true, 0, nil
	}
	return false, 0, fmt.Errorf("log in: %w", c.u.translate(err))
}
