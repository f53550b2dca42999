package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

const pairKeys = 8

// Every transaction writes the same value to all of eight keys. A reader that
// sees two values, or a watcher that gets seven events of a revision, has seen
// half a revision.
func TestReadersAndWatchersSeeWholeRevisions(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	reader := mirror.Client()

	const length = 4 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	watched := watchWhole(ctx, t, reader)
	var g errgroup.Group
	writes, reads := 0, 0
	g.Go(func() (err error) {
		writes, err = writePairs(ctx, client)
		return err
	})
	g.Go(func() (err error) {
		reads, err = readPairs(ctx, reader)
		return err
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	rev := etcd.Revision(t)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	got, err := watched(rev)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d transactions, %d reads, %d revisions watched", writes, reads, got)
	if writes < 200 || reads < 200 || got != writes {
		t.Errorf("%d transactions, %d reads, %d revisions watched: too little traffic, or some were missed", writes, reads, got)
	}
}

func writePairs(ctx context.Context, client *clientv3.Client) (n int, err error) {
	// What was begun is ended, so that every transaction counted is one that
	// etcd has made.
	for ; ctx.Err() == nil; n++ {
		var ops []clientv3.Op
		for k := range pairKeys {
			ops = append(ops, clientv3.OpPut(fmt.Sprint("pair/", k), fmt.Sprint(n)))
		}
		if _, err := client.Txn(context.WithoutCancel(ctx)).Then(ops...).Commit(); err != nil {
			return n, err
		}
	}
	return n, nil
}

func readPairs(ctx context.Context, reader *clientv3.Client) (n int, err error) {
	last := int64(0)
	for ; ctx.Err() == nil; n++ {
		resp, err := reader.Get(context.WithoutCancel(ctx), "pair/", clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil {
			return n, err
		}
		if resp.Header.Revision < last {
			return n, fmt.Errorf("the revision fell from %d to %d", last, resp.Header.Revision)
		}
		last = resp.Header.Revision
		if len(resp.Kvs) != 0 && len(resp.Kvs) != pairKeys {
			return n, fmt.Errorf("revision %d: %d keys", last, len(resp.Kvs))
		}
		for _, kv := range resp.Kvs {
			if string(kv.Value) != string(resp.Kvs[0].Value) || kv.ModRevision != resp.Kvs[0].ModRevision {
				return n, fmt.Errorf("revision %d: %s=%s beside %s", last, kv.Key, kv.Value, resp.Kvs[0].Value)
			}
		}
	}
	return n, nil
}

// watchWhole watches the pairs until the function that it returns is called with
// the last revision; that one returns how many revisions were seen.
func watchWhole(ctx context.Context, t *testing.T, reader *clientv3.Client) func(int64) (int, error) {
	t.Helper()
	watchCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	events := reader.Watch(watchCtx, "pair/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if resp := <-events; resp.Err() != nil {
		t.Fatal(resp.Err())
	}
	return func(until int64) (int, error) {
		defer cancel()
		timeout := time.After(time.Minute)
		n, last := 0, int64(0)
		for last < until {
			var resp clientv3.WatchResponse
			select {
			case resp = <-events:
			case <-timeout:
				return n, fmt.Errorf("the watch stands at revision %d of %d", last, until)
			}
			if err := resp.Err(); err != nil {
				return n, err
			}
			perRev := make(map[int64]int)
			for _, ev := range resp.Events {
				if ev.Kv.ModRevision < last {
					return n, fmt.Errorf("revision %d came after %d", ev.Kv.ModRevision, last)
				}
				last = ev.Kv.ModRevision
				perRev[last]++
			}
			for rev, count := range perRev {
				if count != pairKeys {
					return n, fmt.Errorf("revision %d: %d events in one response, want %d", rev, count, pairKeys)
				}
			}
			n += len(perRev)
		}
		return n, nil
	}
}
