package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/node"
)

// fill gives the etcd a history with all that an exact copy has to keep.
func (d *demo) fill(ctx context.Context) error {
	d.say("\n1. An etcd with a history")
	start := time.Now()
	lease, err := d.etcd.Grant(ctx, 3600)
	if err != nil {
		return err
	}
	const workers = 16
	g, gctx := errgroup.WithContext(ctx)
	for w := range workers {
		g.Go(func() error {
			for i := w; i < demoKeys; i += workers {
				if err := demoWrite(gctx, d.etcd, lease.ID, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	got, err := d.etcd.Get(ctx, "demo/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	d.say("   %s keys by puts, deletes, transactions and a lease in %s: revision %s at %s",
		humanize.Comma(got.Count), since(start), humanize.Comma(got.Header.Revision), d.url)
	return nil
}

func demoWrite(ctx context.Context, c *clientv3.Client, lease clientv3.LeaseID, i int) error {
	key := fmt.Sprintf("demo/%05d", i)
	value := fmt.Sprintf("value of key %d, written before the mirror was there", i)
	switch {
	case i%50 == 1:
		_, err := c.Txn(ctx).Then(clientv3.OpPut(key, value), clientv3.OpPut(key+"/twin", value)).Commit()
		return err
	case i%50 == 2:
		_, err := c.Put(ctx, key, value, clientv3.WithLease(lease))
		return err
	case i%50 == 3:
		if _, err := c.Put(ctx, key, value); err != nil {
			return err
		}
		_, err := c.Delete(ctx, key)
		return err
	}
	_, err := c.Put(ctx, key, value)
	return err
}

func (d *demo) startSource(ctx context.Context) (err error) {
	d.say("\n2. A source node beside it")
	if err := certs.Init(filepath.Join(d.dir, "certs"), ""); err != nil {
		return err
	}
	credentials, err := d.credentials("prod-us", heliograph.RoleSource, "us1")
	if err != nil {
		return err
	}
	start := time.Now()
	d.source, d.stopSource, err = d.start(ctx, node.Config{
		Cluster: "prod-us", DataDir: filepath.Join(d.dir, "source"), Etcd: &node.Etcd{Endpoints: []string{d.url}},
		Listen: "127.0.0.1:0", Credentials: credentials, Log: d.log.With("node", "source"),
	})
	if err != nil {
		return err
	}
	s := d.source.Status()[0]
	d.say("   bootstrapped from etcd and following after %s: revision %s", since(start), humanize.Comma(s.AppliedRevision))
	return nil
}

func (d *demo) startMirror(ctx context.Context) (err error) {
	d.say("\n3. A mirror elsewhere, over QUIC")
	credentials, err := d.credentials("prod-eu", heliograph.RoleMirror, "eu1")
	if err != nil {
		return err
	}
	from := heliograph.Address{Hosts: []string{d.source.Addrs().Mirrors}, Cluster: "prod-us", Database: heliograph.DefaultDatabase}
	start := time.Now()
	peer, err := freeURL()
	if err != nil {
		return err
	}
	d.mirror, _, err = d.start(ctx, node.Config{
		Cluster: "prod-eu", DataDir: filepath.Join(d.dir, "mirror"), From: &from, PeerURL: peer,
		ListenClients: "127.0.0.1:0", ListenAdmin: "127.0.0.1:0", Credentials: credentials, Log: d.log.With("node", "mirror"),
	})
	if err != nil {
		return err
	}
	s := d.mirror.Status()[0]
	d.say("   bootstrapped from the source and following after %s: revision %s, any etcd client reads at http://%s",
		since(start), humanize.Comma(s.AppliedRevision), d.mirror.Addrs().Clients)
	d.reader, err = d.client("http://" + d.mirror.Addrs().Clients)
	return err
}

// follow writes to the etcd and waits for each write in a watch on the mirror.
func (d *demo) follow(ctx context.Context) error {
	d.say("\n4. Writes on the source appear on the mirror")
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := d.reader.Watch(watchCtx, "demo/live", clientv3.WithCreatedNotify())
	if _, err := next(events); err != nil {
		return err
	}
	var took []time.Duration
	for i := range demoWrites {
		start := time.Now()
		put, err := d.etcd.Put(ctx, "demo/live", fmt.Sprint("write ", i))
		if err != nil {
			return err
		}
		resp, err := next(events)
		if err != nil {
			return err
		}
		if got := resp.Events[0].Kv.ModRevision; got != put.Header.Revision {
			return fmt.Errorf("the mirror shows revision %d for what etcd wrote at %d", got, put.Header.Revision)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	d.say("   %d puts on etcd, each seen by a watch on the mirror at the same revision.", demoWrites)
	d.say("   From the put's start to the watch's event: median %s, slowest %s", millisecs(took[len(took)/2]), millisecs(took[len(took)-1]))
	return nil
}

// next returns a watch's next response.
func next(events clientv3.WatchChan) (clientv3.WatchResponse, error) {
	resp, ok := <-events
	err := resp.Err()
	if !ok && err == nil {
		err = errors.New("it ended")
	}
	if err != nil {
		return resp, fmt.Errorf("watch on the mirror: %w", err)
	}
	return resp, nil
}

func (d *demo) refuse(ctx context.Context) error {
	d.say("\n5. A mirror takes no writes")
	_, err := d.reader.Put(ctx, "demo/live", "written to the mirror")
	if err == nil {
		return errors.New("the mirror accepted a write")
	}
	d.say("   etcdctl put would print: %v", err)
	return nil
}

// prove compares etcd's own hash of everything: keys, values, revisions, leases
// and deletes.
func (d *demo) prove(ctx context.Context) error {
	d.say("\n6. The proof: etcd's HashKV, of all revisions, on all three")
	resp, err := d.etcd.HashKV(ctx, d.url, 0)
	if err != nil {
		return err
	}
	d.proof = resp
	rev := resp.HashRevision
	d.say("   etcd    %08x at revision %s", resp.Hash, humanize.Comma(rev))
	for _, n := range []struct {
		name string
		node *node.Node
	}{{"source", d.source}, {"mirror", d.mirror}} {
		h, err := n.node.HashKV(ctx, rev)
		if err != nil {
			return err
		}
		d.say("   %s  %08x at revision %s", n.name, h.Hash, humanize.Comma(h.HashRevision))
		if h.Hash != resp.Hash || h.CompactRevision != resp.CompactRevision {
			return fmt.Errorf("the %s differs from etcd: this must not happen, please report it", n.name)
		}
	}
	d.say("   They are equal.")
	return nil
}

// freeURL returns a URL of a port that nothing listens on.
func freeURL() (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return "http://" + lis.Addr().String(), lis.Close()
}

// promote loses the source and makes an etcd of the mirror.
func (d *demo) promote(ctx context.Context) error {
	d.say("\n7. The source is lost, and the mirror is promoted")
	d.stopEtcd()
	d.stopSource()
	d.say("   The etcd and its source node are gone. The mirror holds everything up to revision %s.",
		humanize.Comma(d.mirror.Status()[0].AppliedRevision))
	start := time.Now()
	rec, err := d.mirror.Promote(ctx, node.PromoteOptions{By: "helio demo"})
	if err != nil {
		return err
	}
	put, err := d.reader.Put(ctx, "demo/live", "written after the promotion")
	if err != nil {
		return err
	}
	if put.Header.Revision != rec.First() || put.Header.ClusterId == d.proof.Header.ClusterId {
		return fmt.Errorf("the write has revision %d in cluster %x: this must not happen, please report it", put.Header.Revision, put.Header.ClusterId)
	}
	d.say("   helio promote: a writable etcd at the same address, with its first write at revision %s, after %s,\n   most of which went by until nobody had answered.",
		humanize.Comma(put.Header.Revision), since(start))
	d.say("   It is cluster %x; the old one was %x.", put.Header.ClusterId, d.proof.Header.ClusterId)
	hash, err := d.reader.HashKV(ctx, d.reader.Endpoints()[0], rec.Revision)
	if err != nil {
		return err
	}
	if hash.Hash != d.proof.Hash {
		return errors.New("the promoted etcd differs from what it was made of: this must not happen, please report it")
	}
	d.say("   Its HashKV at revision %s is %08x, as that of the lost etcd was.", humanize.Comma(rec.Revision), hash.Hash)
	return nil
}
