package etcd_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/store"
)

// leasesOf returns etcd's leases with their granted TTLs.
func leasesOf(tb testing.TB, client *clientv3.Client) map[int64]int64 {
	tb.Helper()
	list, err := client.Leases(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	got := make(map[int64]int64)
	for _, l := range list.Leases {
		ttl, err := client.TimeToLive(tb.Context(), l.ID)
		if err != nil {
			tb.Fatal(err)
		}
		if ttl.GrantedTTL > 0 {
			got[int64(l.ID)] = ttl.GrantedTTL
		}
	}
	return got
}

func leasesIn(st *store.Store) map[int64]int64 {
	got := make(map[int64]int64)
	for _, l := range st.Leases() {
		got[l.ID] = l.TTL
	}
	return got
}

// sameLeases waits until the store has etcd's leases, TTLs included.
func (r *rig) sameLeases(client *clientv3.Client) {
	r.tb.Helper()
	want := leasesOf(r.tb, client)
	r.until(fmt.Sprintf("%d leases learned", len(want)), func() bool { return maps.Equal(leasesIn(r.store), want) })
}

// grant grants n leases of their own TTLs; every other one gets a key.
func grant(tb testing.TB, client *clientv3.Client, n int) []clientv3.LeaseID {
	tb.Helper()
	ids := make([]clientv3.LeaseID, n)
	group, ctx := errgroup.WithContext(tb.Context())
	group.SetLimit(16)
	for i := range ids {
		group.Go(func() error {
			l, err := client.Grant(ctx, 1000+int64(i))
			if err == nil && i%2 == 0 {
				_, err = client.Put(ctx, fmt.Sprintf("lease/%d", i), "v", clientv3.WithLease(l.ID))
			}
			if err == nil {
				ids[i] = l.ID
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		tb.Fatal(err)
	}
	return ids
}

// Leases granted and revoked while following, with keys and without, are etcd's;
// also those that changed while nobody followed.
func TestLeasesAreLearned(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	grant(t, client, 20)
	r := newRig(t, c)
	r.cfg.LearnInterval = 200 * time.Millisecond
	r.start()
	r.exact(c)
	r.sameLeases(client)
	ids := grant(t, client, 1000)
	r.sameLeases(client)
	for _, id := range ids[:500] {
		if _, err := client.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	r.sameLeases(client)
	r.exact(c)

	r.stop()
	for _, id := range ids[500:700] {
		if _, err := client.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	grant(t, client, 100)
	r.start()
	r.sameLeases(client)
	r.exact(c)
	// An id that comes back with another TTL.
	if _, err := client.Revoke(t.Context(), ids[999]); err != nil {
		t.Fatal(err)
	}
	if _, err := raw(client).LeaseGrant(t.Context(), &etcdserverpb.LeaseGrantRequest{ID: int64(ids[999]), TTL: 7777}); err != nil {
		t.Fatal(err)
	}
	r.sameLeases(client)
}

func raw(client *clientv3.Client) etcdserverpb.LeaseClient {
	return etcdserverpb.NewLeaseClient(client.ActiveConnection())
}

// A lease that a record names is asked for at once, not with the next list.
func TestLeaseOfARecordIsLearnedAtOnce(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	r.cfg.LearnInterval = time.Hour
	r.start()
	r.exact(c)
	l, err := client.Grant(t.Context(), 1234)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(t.Context(), "k", "v", clientv3.WithLease(l.ID)); err != nil {
		t.Fatal(err)
	}
	r.until("the TTL learned", func() bool { return leasesIn(r.store)[int64(l.ID)] == 1234 })
}

// Access control is noticed when it goes on and off, and when it locks the
// upstream itself out.
func TestAuthIsLearned(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	r := newRig(t, c)
	r.cfg.LearnInterval = 100 * time.Millisecond
	r.start()
	auth := func(enabled bool) func() bool {
		return func() bool {
			e, _, known := r.store.Auth()
			return known && e == enabled
		}
	}
	r.until("access control off", auth(false))
	r.exact(c)
	c.EnableAuth(t, "secret")
	r.until("locked out", auth(true))
	r.stop()
	if err := r.store.SetAuth(false, 0); err != nil {
		t.Fatal(err)
	}
	r.cfg.Username, r.cfg.Password = "root", "secret"
	r.start()
	r.until("access control on", auth(true))
	r.exact(c)
	if _, rev, _ := r.store.Auth(); rev < 2 {
		t.Errorf("revision %d", rev)
	}
	if _, err := c.Client(t).AuthDisable(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.until("access control off again", auth(false))
}

// deaf is a replica that takes no leases.
type deaf struct{ *store.Store }

func (deaf) ApplyLeases(heliograph.LeaseChange) error { return fmt.Errorf("no room for leases") }

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// What cannot be learned is said once, and following goes on.
func TestLeasesThatCannotBeLearned(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	log := &lines{}
	r.cfg.LearnInterval = 10 * time.Millisecond
	r.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	r.cfg.Replica = deaf{r.store}
	r.start()
	r.exact(c)
	grant(t, client, 3)
	r.until("said", func() bool { return log.count("no room for leases") == 1 })
	for range 30 {
		if _, err := client.Put(context.Background(), "k", "v"); err != nil {
			t.Fatal(err)
		}
		r.exact(c)
	}
	if n := log.count("no room for leases"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if v := r.heard.view(); v.connected != 1 {
		t.Errorf("connected %d times: %v", v.connected, v.lost)
	}
}
