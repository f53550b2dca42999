package etcdtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Revision returns the cluster's current revision, read linearizably.
func (c *Cluster) Revision(tb testing.TB) int64 {
	tb.Helper()
	client := c.own(tb, c.Endpoints())
	defer client.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), callWait)
	defer cancel()
	rev, err := Revision(ctx, client)
	if err != nil {
		tb.Fatal(err)
	}
	return rev
}

// Leader returns the index of the member that leads, and waits until there is
// one among the members that answer.
func (c *Cluster) Leader(tb testing.TB) int {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), readyWait)
	defer cancel()
	client := c.own(tb, c.Endpoints())
	defer client.Close()
	for ctx.Err() == nil {
		for i, m := range c.members {
			if !m.Running() {
				continue
			}
			if leads(ctx, client, m.endpoint) {
				return i
			}
		}
		pause(ctx)
	}
	tb.Fatal("no member leads")
	return 0
}

// HashKV returns the hash of the first member that answers, over the history
// up to rev (0: all), and the compaction revision that it depends on. It waits
// until that member has applied rev.
func (c *Cluster) HashKV(tb testing.TB, rev int64) (hash uint32, compactRev int64) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), readyWait)
	defer cancel()
	var last error
	for _, m := range c.members {
		if !m.Running() {
			continue
		}
		client := c.own(tb, []string{m.endpoint})
		_, last = Revision(ctx, client) // so that the member has applied what was acknowledged
		if last == nil {
			hash, compactRev, last = HashKV(ctx, client, m.endpoint, rev)
		}
		client.Close()
		if last == nil {
			return hash, compactRev
		}
	}
	tb.Fatalf("hash of revision %d: %v", rev, last)
	return 0, 0
}

// own returns a client that the caller closes.
func (c *Cluster) own(tb testing.TB, endpoints []string) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(c.config(endpoints))
	if err != nil {
		tb.Fatalf("client: %v", err)
	}
	return client
}

// Revision returns the current revision of the client's cluster, read
// linearizably.
func Revision(ctx context.Context, client *clientv3.Client) (int64, error) {
	resp, err := client.Get(ctx, "\x00", clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("current revision: %w", err)
	}
	return resp.Header.Revision, nil
}

// HashKV returns endpoint's hash over the history up to rev (0: all) and the
// compaction revision that the hash depends on: two are comparable only if
// both revisions are equal. endpoint may be etcd or anything that speaks its
// maintenance API.
func HashKV(ctx context.Context, client *clientv3.Client, endpoint string, rev int64) (hash uint32, compactRev int64, err error) {
	resp, err := client.HashKV(ctx, endpoint, rev)
	if err != nil {
		return 0, 0, fmt.Errorf("hash of revision %d at %s: %w", rev, endpoint, err)
	}
	return resp.Hash, resp.CompactRevision, nil
}

func leads(ctx context.Context, client *clientv3.Client, endpoint string) bool {
	ctx, cancel := context.WithTimeout(ctx, callWait/10)
	defer cancel()
	resp, err := client.Status(ctx, endpoint)
	return err == nil && resp.Leader == resp.Header.MemberId
}

// pause sets the pace of asking again; it is no wait for a result.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

func healthy(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, callWait/10)
	defer cancel()
	_, err := Revision(ctx, client)
	return err
}

func save(ctx context.Context, client *clientv3.Client, path string) error {
	resp, err := client.SnapshotWithVersion(ctx)
	if err != nil {
		return err
	}
	defer resp.Snapshot.Close()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, resp.Snapshot); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
