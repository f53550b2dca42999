package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

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
		Short: "Show it all in one process: an etcd, a source, a mirror, the proof, and a promotion",
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

	stopEtcd   func() // a second call does nothing
	stopSource func()
	proof      *clientv3.HashKVResponse // of the etcd
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
	d.stopEtcd = sync.OnceFunc(e.Close)
	defer d.stopEtcd()
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
	chapters := []func(context.Context) error{d.fill, d.startSource, d.startMirror, d.follow, d.refuse, d.prove}
	if !keep { // who looks around promotes by hand
		chapters = append(chapters, d.promote)
	}
	for _, chapter := range chapters {
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

func (d *demo) credentials(cluster heliograph.ClusterID, role heliograph.Role, name string) (*certs.Credentials, error) {
	files, err := certs.Issue(certs.IssueConfig{Dir: filepath.Join(d.dir, "certs"), Cluster: cluster, Role: role, Name: name})
	if err != nil {
		return nil, err
	}
	return certs.Load(files, certs.Config{Log: d.log})
}

// start opens a node, runs it beside the others and waits until it follows. stop
// ends its Run, and waits for that.
func (d *demo) start(ctx context.Context, cfg node.Config) (n *node.Node, stop func(), err error) {
	n, err = node.Open(cfg)
	if err != nil {
		return nil, nil, err
	}
	running, cancel := context.WithCancel(d.ctx)
	ended := make(chan struct{})
	d.parts.Go(func() error {
		defer close(ended)
		defer cancel()
		return n.Run(running)
	})
	return n, func() { cancel(); <-ended }, waitFollowing(ctx, n)
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
   helio promote --plan --admin http://%[3]s
   helio promote --force --admin unix:%[5]s
Logs: %[4]s`, mirror.Clients, d.url, mirror.Admin, filepath.Join(d.dir, "demo.log"), mirror.Socket)
	select {
	case <-ctx.Done():
	case <-d.ctx.Done():
	}
}

func since(start time.Time) time.Duration { return time.Since(start).Round(time.Millisecond) }

func millisecs(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
