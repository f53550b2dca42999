package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
)

// Limits of a response of the watch, in bytes: the largest that is ever
// accepted, and the smallest limit that leaves room for an event as large as
// etcd's default limit of a request allows.
const (
	maxResponseBytes = heliograph.MaxBatchBytes + 64<<20
	minResponseBytes = 2 << 20
)

// connection is a connection to one member of etcd. Its methods are safe for
// concurrent use.
type connection struct {
	u        *Upstream
	endpoint string
	client   *clientv3.Client
	kv       pb.KVClient
	id       uint64 // etcd's cluster id, as this member says
	head     int64  // etcd's revision when the connection was made
}

// dial connects to a member and learns who it is and how far it has come.
func (u *Upstream) dial(ctx context.Context, endpoint string) (*connection, error) {
	// clientv3 logs at its own discretion; what matters comes back as errors.
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		TLS:         u.cfg.TLS.Clone(),
		Username:    u.cfg.Username,
		Password:    u.cfg.Password,
		DialTimeout: u.cfg.Silence,
		Context:     ctx,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect: %w", unanswered(endpoint, u.translate(err)))
	}
	c := &connection{u: u, endpoint: endpoint, client: client, kv: pb.NewKVClient(client.ActiveConnection())}
	if err := c.meet(ctx); err != nil {
		c.close()
		return nil, fmt.Errorf("connect: %w", unanswered(endpoint, err))
	}
	return c, nil
}

// close ends the connection and everything on it.
func (c *connection) close() {
	c.client.Close() // its error only says that a context has ended
}

// meet asks for etcd's version, cluster id and revision.
func (c *connection) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.u.cfg.Silence)
	defer cancel()
	status, err := pb.NewMaintenanceClient(c.client.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask for the version: %w", c.u.translate(err))
	}
	if err := supported(status.Version); err != nil {
		return err
	}
	c.u.version.Store(&status.Version)
	c.id = status.Header.GetClusterId()
	c.head, err = c.revision(ctx, 0)
	return err
}

// supported says whether this version of etcd can be followed.
func supported(version string) error {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	if err1 != nil || err2 != nil || a != 3 || b < 4 {
		return fmt.Errorf("etcd %.40q cannot be followed: it takes 3.4 or a newer 3.x", version)
	}
	return nil
}

// revision returns etcd's current revision by a linearizable read as of
// revision at (0: now). It returns rpctypes.ErrCompacted if etcd has compacted
// beyond at. It takes at most Config.Silence.
func (c *connection) revision(ctx context.Context, at int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.u.cfg.Silence)
	defer cancel()
	began := time.Now()
	resp, err := c.kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, Limit: 1, CountOnly: true, Revision: at})
	if err != nil {
		return 0, fmt.Errorf("read the revision: %w", c.u.translate(err))
	}
	c.u.metrics.readSeconds.Observe(time.Since(began).Seconds())
	if err := c.same(resp.Header); err != nil {
		return 0, err
	}
	return resp.Header.GetRevision(), nil
}

// same refuses an answer of another cluster than the one that was met: what is
// behind an address can change while a connection is being made again.
func (c *connection) same(h *pb.ResponseHeader) error {
	if id := h.GetClusterId(); id != c.id {
		return fmt.Errorf("another etcd cluster answers at %s: %x instead of %x", c.endpoint, id, c.id)
	}
	return nil
}

// compactedTo reports whether etcd's compaction revision is at or above rev.
func (c *connection) compactedTo(ctx context.Context, rev int64) (bool, error) {
	_, err := c.revision(ctx, max(rev-1, 1))
	if errors.Is(err, rpctypes.ErrCompacted) {
		return true, nil
	}
	return false, err
}

// check compares the member with what the replica holds.
func (c *connection) check() error {
	origin, applied := c.u.cfg.Replica.Origin(), c.u.cfg.Replica.Applied()
	switch {
	case applied == 0:
		return nil
	case origin.EtcdID != c.id:
		return &heliograph.DivergedError{Why: fmt.Sprintf(
			"the replica comes from the etcd cluster %x, but %x answers at %s: check the endpoints, or resync if etcd was created anew",
			origin.EtcdID, c.id, c.endpoint)}
	default:
		return wentBack(c.head, applied)
	}
}

// wentBack refuses a linearizable read that is below the applied revision.
func wentBack(head, applied int64) error {
	if head >= applied {
		return nil
	}
	return &heliograph.DivergedError{Rev: applied, Why: fmt.Sprintf(
		"etcd is at revision %d, the replica at %d: etcd was restored from a backup or created anew; resync to follow it as it is now",
		head, applied)}
}
