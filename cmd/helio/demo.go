package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/internal/zaplog"
	"github.com/heliograph/heliograph/node"
)

const (
	demoKeys    = 5000
	demoWrites  = 50 // whose way to the mirror is timed
	demoTimeout = time.Minute
)

func newDemoCommand(std stdio) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it all in one process: an etcd, a source, a mirror, and the proof",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), std, keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave it running until interrupted, and say what to try")
	return cmd
}

// demo is the cast of the story.
type demo struct {
	std    stdio
	dir    string
	log    *slog.Logger
	parts  *errgroup.Group // the nodes' Run
	ctx    context.Context // of the parts; ends the demo
	etcd   *clientv3.Client
	url    string // of the etcd
	source *node.Node
	mirror *node.Node
	reader *clientv3.Client // of the mirror
}

func runDemo(ctx context.Context, std stdio, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "helio-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	logFile, err := os.OpenFile(filepath.Join(dir, "demo.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()

	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts, partsCtx := errgroup.WithContext(runCtx)
	d := &demo{std: std, dir: dir, parts: parts, ctx: partsCtx,
		log: slog.New(slog.NewTextHandler(logFile, nil))}
	d.say("Heliograph demo: an etcd, a source node and a mirror node in one process.")
	d.say("Everything is in %s and goes away at the end.", dir)

	e, err := d.startEtcd()
	if err != nil {
		return err
	}
	defer e.Close()
	defer func() {
		// In the order in which they depend on each other, mirror first.
		cancel()
		err = errors.Join(err, ignoreCanceled(parts.Wait()))
		for _, n := range []*node.Node{d.mirror, d.source} {
			if n != nil {
				err = errors.Join(err, n.Close())
			}
		}
		for _, c := range []*clientv3.Client{d.reader, d.etcd} {
			if c != nil {
				err = errors.Join(err, ignoreCanceled(c.Close()))
			}
		}
	}()
	story, stop := context.WithTimeoutCause(partsCtx, demoTimeout, fmt.Errorf("the demo did not end within %s", demoTimeout))
	defer stop()
	for _, chapter := range []func(context.Context) error{
		d.fill, d.startSource, d.startMirror, d.follow, d.refuse, d.prove,
	} {
		if err := chapter(story); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("the demo was interrupted: %w", context.Cause(ctx))
			}
			if cause := context.Cause(story); cause != nil {
				err = errors.Join(cause, err)
			}
			return err
		}
	}
	if !keep {
		d.say("\nTo look around yourself: helio demo --keep")
		return nil
	}
	stop()
	d.keep(ctx)
	return nil
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.std.out, format+"\n", args...)
}

func (d *demo) startEtcd() (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(d.dir, "etcd")
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zaplog.New(d.log))
	any, err := url.Parse("http://127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*any}, []url.URL{*any}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*any}, []url.URL{*any}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-d.ctx.Done():
		e.Close()
		return nil, context.Cause(d.ctx)
	case <-time.After(demoTimeout):
		e.Close()
		return nil, errors.New("etcd did not become ready")
	}
	d.url = "http://" + e.Clients[0].Addr().String()
	if d.etcd, err = d.client(d.url); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (d *demo) client(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second,
		Logger: zaplog.New(d.log),
	})
}

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

func (d *demo) credentials(cluster heliograph.ClusterID, role heliograph.Role, name string) (*certs.Credentials, error) {
	files, err := certs.Issue(certs.IssueConfig{Dir: filepath.Join(d.dir, "certs"), Cluster: cluster, Role: role, Name: name})
	if err != nil {
		return nil, err
	}
	return certs.Load(files, certs.Config{Log: d.log})
}

// start opens a node, runs it beside the others and waits until it follows.
func (d *demo) start(ctx context.Context, cfg node.Config) (*node.Node, error) {
	n, err := node.Open(cfg)
	if err != nil {
		return nil, err
	}
	d.parts.Go(func() error { return n.Run(d.ctx) })
	return n, waitFollowing(ctx, n)
}

func waitFollowing(ctx context.Context, n *node.Node) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s := n.Status()[0]
		switch s.Status {
		case heliograph.Following:
			return nil
		case heliograph.Diverged:
			return errors.New(s.Why)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is %s: %s", s.Cluster, s.Status, s.Why)
		case <-tick.C:
		}
	}
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
	d.source, err = d.start(ctx, node.Config{
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
	d.mirror, err = d.start(ctx, node.Config{
		Cluster: "prod-eu", DataDir: filepath.Join(d.dir, "mirror"), From: &from,
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

func (d *demo) keep(ctx context.Context) {
	mirror := d.mirror.Addrs()
	d.say(`
It goes on until you press Ctrl-C. In another terminal:
   etcdctl --endpoints %[1]s watch --prefix demo/
   etcdctl --endpoints %[2]s put demo/live hello
   etcdctl --endpoints %[1]s get demo/live -w json
   etcdctl --endpoints %[1]s endpoint hashkv
   etcdctl --endpoints %[2]s endpoint hashkv
   helio status --admin http://%[3]s
Logs: %[4]s`, mirror.Clients, d.url, mirror.Admin, filepath.Join(d.dir, "demo.log"))
	select {
	case <-ctx.Done():
	case <-d.ctx.Done():
	}
}

func since(start time.Time) time.Duration { return time.Since(start).Round(time.Millisecond) }

func millisecs(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
