package promote_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
)

// Leases keep their ids and their keys and start again with the TTL that was
// granted; then they expire. (etcd#16431: keys that never expire.)
func TestLeases(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	c := source.Client(t)
	long, short, empty, revoked := grant(t, c, 1000), grant(t, c, 6), grant(t, c, 500), grant(t, c, 500)
	put(t, c, "long", "1", clientv3.WithLease(long))
	put(t, c, "short", "1", clientv3.WithLease(short))
	put(t, c, "revoked", "1", clientv3.WithLease(revoked))
	dir := t.TempDir()
	follow(t, source, dir)

	// Granted after the replica's snapshot, so that their TTL may be unknown.
	late, moved := grant(t, c, 700), grant(t, c, 700)
	put(t, c, "late", "1", clientv3.WithLease(late))
	put(t, c, "moved", "1", clientv3.WithLease(moved))
	put(t, c, "moved", "2", clientv3.WithLease(long))
	for i := range 300 {
		put(t, c, fmt.Sprintf("late/%d", i), "1", clientv3.WithLease(late))
	}
	if _, err := c.Revoke(t.Context(), revoked); err != nil {
		t.Fatal(err)
	}
	follow(t, source, dir)
	known := make(map[int64]int64)
	st := openStore(t, dir)
	for _, l := range st.Leases() {
		known[l.ID] = l.TTL
	}
	closeStore(t, st)

	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	cfg.LeaseTTL = 2 * time.Hour
	rec := mustPromote(t, cfg)
	started := time.Now()
	s := serve(t, dir, rec)
	defer s.stop()
	lateTTL, defaulted := int64(2*60*60), 1
	if known[int64(late)] != 0 { // the replica has learned it by other means
		lateTTL, defaulted = 700, 0
	}
	if rec.LeasesDefaulted != defaulted || rec.Leases < 4 {
		t.Errorf("record says %d leases, %d of them with a default; want %d", rec.Leases, rec.LeasesDefaulted, defaulted)
	}
	for _, want := range []struct {
		name string
		id   clientv3.LeaseID
		ttl  int64
		keys int
	}{{"long", long, 1000, 2}, {"short", short, 6, 1}, {"empty", empty, 500, 0}, {"late", late, lateTTL, 301}} {
		got, err := s.client.TimeToLive(t.Context(), want.id, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatalf("%s: %v", want.name, err)
		}
		age := int64(time.Since(started)/time.Second) + 1
		if got.GrantedTTL != want.ttl || got.TTL < want.ttl-age || got.TTL > want.ttl || len(got.Keys) != want.keys {
			t.Errorf("%s: granted %d, left %d, %d keys; want %d, at least %d, %d keys",
				want.name, got.GrantedTTL, got.TTL, len(got.Keys), want.ttl, want.ttl-age, want.keys)
		}
	}
	if _, err := s.client.KeepAliveOnce(t.Context(), long); err != nil {
		t.Errorf("keep alive: %v", err)
	}
	gone := waitDeleted(t, s.client, "short")
	if left := gone.Sub(started); left < 5*time.Second {
		t.Errorf("a lease of 6 s has expired after %v", left)
	}
	for _, key := range []string{"long", "late", "moved"} {
		if resp, err := s.client.Get(t.Context(), key); err != nil || len(resp.Kvs) != 1 {
			t.Errorf("%s is gone: %v", key, err)
		}
	}
}

// waitDeleted returns when the key is deleted.
func waitDeleted(t *testing.T, c *clientv3.Client, key string) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := c.Get(ctx, key)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("%s: %v, %v", key, resp, err)
	}
	for w := range c.Watch(ctx, key, clientv3.WithRev(resp.Header.Revision+1)) {
		for _, e := range w.Events {
			if e.Type == clientv3.EventTypeDelete {
				return time.Now()
			}
		}
	}
	t.Fatalf("%s was not deleted within %v", key, patience)
	return time.Time{}
}

// 10,000 leases live and are counted.
func TestManyLeases(t *testing.T) {
	t.Parallel()
	const n = 10_000
	dir := t.TempDir()
	rev := fillReplica(t, dir, n, 8, true)
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	rec := mustPromote(t, cfg)
	if rec.Revision != rev || rec.Leases != n || rec.LeasesDefaulted != n {
		t.Errorf("record %+v, want %d leases", rec, n)
	}
	s := serve(t, dir, rec)
	defer s.stop()
	resp, err := s.client.Leases(t.Context())
	if err != nil || len(resp.Leases) != n {
		t.Errorf("%d leases, %v", len(resp.Leases), err)
	}
	got, err := s.client.TimeToLive(t.Context(), resp.Leases[n/2].ID)
	if err != nil || got.GrantedTTL != int64(promote.DefaultLeaseTTL/time.Second) {
		t.Errorf("%+v, %v", got, err)
	}
}
