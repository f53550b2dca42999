package etcdtest

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph/internal/proctest"
)

// readyWait is how long a member may take until it answers a read.
const readyWait = 60 * time.Second

// Member is one etcd process. Its methods belong to the goroutine of the test.
// A member that was restarted is not ready at once: see [Cluster.WaitReady].
type Member struct {
	*proctest.Process
	endpoint string // client URL
	peer     string // peer URL
	dataDir  string
}

// Endpoint returns the member's client URL.
func (m *Member) Endpoint() string { return m.endpoint }

// DataDir returns the member's data directory.
func (m *Member) DataDir() string { return m.dataDir }

// waitReady returns when the member answers a linearizable read.
func (m *Member) waitReady(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	var last error
	for {
		if err := m.Err(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is not ready: %w (last: %v)", m.Name(), ctx.Err(), last)
		}
		if last = healthy(ctx, client); last == nil {
			return nil
		}
		pause(ctx)
	}
}
