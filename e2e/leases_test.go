package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

const callers = 16 // at once

// each calls f for every number below n, several at once.
func each(t *testing.T, n int, f func(ctx context.Context, i int) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(callers)
	for i := range n {
		group.Go(func() error { return f(ctx, i) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// grant grants leases of different TTLs; two of three get keys.
func grant(t *testing.T, client *clientv3.Client, n int) []clientv3.LeaseID {
	t.Helper()
	ids := make([]clientv3.LeaseID, n)
	each(t, n, func(ctx context.Context, i int) error {
		l, err := client.Grant(ctx, 3600+int64(i))
		for k := 0; err == nil && k < i%3; k++ {
			_, err = client.Put(ctx, fmt.Sprintf("lease/%x/%d", l.ID, k), "v", clientv3.WithLease(l.ID))
		}
		if err == nil {
			ids[i] = l.ID
		}
		return err
	})
	return ids
}

// leases returns what a client is told of all leases: granted TTL and keys.
func leases(ctx context.Context, client *clientv3.Client) (map[clientv3.LeaseID]string, error) {
	list, err := client.Leases(ctx)
	if err != nil {
		return nil, err
	}
	told := make([]string, len(list.Leases))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callers)
	for i, l := range list.Leases {
		group.Go(func() error {
			resp, err := client.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
			if err != nil {
				return err
			}
			var keys []string
			for _, k := range resp.Keys {
				keys = append(keys, string(k))
			}
			slices.Sort(keys)
			told[i] = fmt.Sprintf("%ds %q", resp.GrantedTTL, keys)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	got := make(map[clientv3.LeaseID]string)
	for i, l := range list.Leases {
		got[l.ID] = told[i]
	}
	return got, nil
}

// requireLeases waits until the nodes tell the same of leases as etcd.
func requireLeases(t *testing.T, want map[clientv3.LeaseID]string, nodes ...*heliotest.Node) {
	t.Helper()
	for _, n := range nodes {
		client := n.Client()
		deadline := time.Now().Add(time.Minute)
		for {
			got, err := leases(t.Context(), client)
			if err == nil && maps.Equal(got, want) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d leases, want %d (%v)", n.Name(), len(got), len(want), err)
			}
			time.Sleep(50 * time.Millisecond) // the pace of asking again
		}
	}
}

var remaining = regexp.MustCompile(`remaining\(\d+s\)`)

// etcdctl runs etcdctl against an endpoint and returns what it prints, without
// how much time leases have left: on a mirror that is always all of it.
func etcdctl(t *testing.T, endpoint string, args ...string) string {
	t.Helper()
	return remaining.ReplaceAllString(etcdtest.Etcdctl(t, append([]string{"--endpoints=" + endpoint}, args...)...), "remaining(-)")
}

// Leases, with and without keys, are the same on etcd, its source node, a mirror,
// and a mirror of the mirror, while they come and go and after restarts.
func TestLeasesDownTheChain(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	before := grant(t, client, 30)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := pki.Mirror("prod-eu", source, true)
	leaf := pki.Mirror("prod-asia", relay, false)
	leaf.WaitFollowing()
	same := func(nodes ...*heliotest.Node) map[clientv3.LeaseID]string {
		t.Helper()
		want, err := leases(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		requireLeases(t, want, nodes...)
		return want
	}
	same(source, relay, leaf)

	ids := grant(t, client, 1000)
	same(source, relay, leaf)
	rng := rand.New(rand.NewPCG(seed(t), 3))
	gone := slices.Concat(ids[:400], before[:10])
	rng.Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
	each(t, len(gone), func(ctx context.Context, i int) error {
		_, err := client.Revoke(ctx, gone[i])
		return err
	})
	want := same(source, relay, leaf)
	heliotest.RequireEqual(t, etcd, etcd.Revision(t), source, relay, leaf)

	for _, id := range []clientv3.LeaseID{ids[401], ids[402], ids[403], ids[0]} { // none, one, two keys, revoked
		hex := fmt.Sprintf("%x", id)
		theirs := etcdctl(t, etcd.Endpoints()[0], "lease", "timetolive", hex, "--keys")
		for _, n := range []*heliotest.Node{source, relay, leaf} {
			if got := etcdctl(t, n.Clients, "lease", "timetolive", hex, "--keys"); sorted(got) != sorted(theirs) {
				t.Errorf("%s: %q, etcd says %q", n.Name(), got, theirs)
			}
		}
	}
	theirs := etcdctl(t, etcd.Endpoints()[0], "lease", "list")
	if got := etcdctl(t, leaf.Clients, "lease", "list"); sorted(got) != sorted(theirs) {
		t.Errorf("lease list has %d lines, etcd's has %d", strings.Count(got, "\n"), strings.Count(theirs, "\n"))
	}

	// Killed and alone, a mirror still knows them.
	source.Kill()
	relay.Kill()
	leaf.Restart()
	requireLeases(t, want, leaf)
	more := grant(t, client, 50)
	if _, err := client.Revoke(t.Context(), ids[500]); err != nil {
		t.Fatal(err)
	}
	source.Start()
	relay.Start()
	want = same(source, relay, leaf)
	if _, ok := want[more[0]]; !ok {
		t.Error("a lease granted meanwhile is missing on etcd itself")
	}
}

// sorted sorts the words of a text: the order of keys and leases is nobody's
// promise.
func sorted(s string) string {
	words := strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" \n[],()", r) })
	slices.Sort(words)
	return strings.Join(words, " ")
}
