package e2e_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/internal/proctest"
)

// contents returns all keys and values.
func contents(ctx context.Context, client *clientv3.Client) (map[string]string, error) {
	resp, err := client.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	m := make(map[string]string, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		m[string(kv.Key)] = string(kv.Value)
	}
	return m, nil
}

// etcd's own tools, with a mirror where they expect an etcd: make-mirror copies
// everything from it and goes on, and a proxy serves reads and watches from it.
func TestToolsOfEtcdOnAMirror(t *testing.T) {
	t.Parallel()
	const revisions = 6000 // more keys than make-mirror copies in one piece
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, revisions)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	t.Run("make-mirror", func(t *testing.T) { makeMirror(t, client, mirror) })
	t.Run("grpc-proxy", func(t *testing.T) { grpcProxy(t, client, mirror) })
}

func makeMirror(t *testing.T, client *clientv3.Client, mirror *heliotest.Node) {
	to := etcdtest.Start(t, etcdtest.Options{})
	copied := to.Client(t)
	p := proctest.New(t, "make-mirror", filepath.Join(t.TempDir(), "make-mirror.log"), etcdtest.Binary(t, "etcdctl"),
		"--endpoints="+mirror.Clients, "make-mirror", to.Endpoints()[0])
	p.Start()
	ctx, cancel := context.WithTimeout(t.Context(), watchWait)
	defer cancel()
	equal := func(what string) {
		t.Helper()
		want, err := contents(ctx, client)
		if err != nil {
			t.Fatal(err)
		}
		for {
			if err := p.Err(); err != nil {
				t.Fatal(err)
			}
			got, err := contents(ctx, copied)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if fmt.Sprint(got) == fmt.Sprint(want) { // maps are printed in the order of their keys
				t.Logf("%s: %d keys, equal to etcd's", what, len(got))
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	equal("first copy")
	if _, err := client.Put(ctx, "fill/txn", "changed"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Delete(ctx, "fill/0000000", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	equal("following")
}

func grpcProxy(t *testing.T, client *clientv3.Client, mirror *heliotest.Node) {
	addr := fmt.Sprintf("127.0.0.1:%d", proctest.FreePorts(t, 1)[0])
	dir := t.TempDir()
	p := proctest.New(t, "grpc-proxy", filepath.Join(dir, "proxy.log"), etcdtest.Binary(t, "etcd"),
		"grpc-proxy", "start", "--endpoints="+mirror.Clients, "--listen-addr="+addr, "--data-dir="+dir)
	p.Start()
	proxied, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer proxied.Close()
	ctx, cancel := context.WithTimeout(t.Context(), watchWait)
	defer cancel()
	want, err := contents(ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	for got == nil {
		if got, err = contents(ctx, proxied); ctx.Err() != nil {
			t.Fatalf("the proxy does not answer: %v", err)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the proxy shows %d keys that are not etcd's %d", len(got), len(want))
	}
	past, err := client.Put(ctx, "proxied", "1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, "proxied", "2"); err != nil {
		t.Fatal(err)
	}
	events := proxied.Watch(ctx, "proxied", clientv3.WithRev(past.Header.Revision), clientv3.WithPrevKV())
	var shown []string
	for len(shown) < 4 {
		resp := <-events
		if resp.Err() != nil {
			t.Fatal(resp.Err())
		}
		for _, ev := range resp.Events {
			prev := ""
			if ev.PrevKv != nil {
				prev = string(ev.PrevKv.Value)
			}
			shown = append(shown, fmt.Sprintf("%s %s←%s", ev.Type, ev.Kv.Value, prev))
		}
		if len(shown) == 2 { // the past is shown; now what happens while it watches
			if _, err := client.Put(ctx, "proxied", "3"); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Delete(ctx, "proxied"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, want := strings.Join(shown, ", "), "PUT 1←, PUT 2←1, PUT 3←2, DELETE ←3"; got != want {
		t.Errorf("watched %s, want %s", got, want)
	}
	if _, err := proxied.Put(ctx, "proxied", "4"); err == nil || !strings.Contains(err.Error(), "read-only mirror") {
		t.Errorf("a write through the proxy: %v", err)
	}
}
