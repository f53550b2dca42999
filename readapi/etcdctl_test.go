package readapi_test

import (
	"bufio"
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph/internal/etcdtest"
)

// etcdctl runs etcdctl on an endpoint and returns its output and whether it
// succeeded.
func etcdctl(t *testing.T, endpoint string, args ...string) (stdout, stderr string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), etcdtest.Binary(t, "etcdctl"), append([]string{"--endpoints=" + endpoint}, args...)...)
	var out, talk strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	return out.String(), talk.String(), err == nil
}

// start runs a program until the test ends and hands its output's lines to line.
func start(t *testing.T, line func(string), name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, etcdtest.Binary(t, name), args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			line(s.Text())
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait() // killed
	})
}

// twinsForTools returns an etcd with some data and a server on a replica of it.
func twinsForTools(t *testing.T) (*etcdtest.Cluster, *replica, *server) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	c := cluster.Client(t)
	for _, kv := range []string{"a=1", "a=2", "b/x=3", "b/y=4", "b/x=5", "c=6"} {
		k, v, _ := strings.Cut(kv, "=")
		if _, err := c.Put(call(t), k, v); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Delete(call(t), "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Txn(call(t)).Then(clientv3.OpPut("d", "7"), clientv3.OpPut("e", "7")).Commit(); err != nil {
		t.Fatal(err)
	}
	r := replicaOf(t, cluster.Save(t))
	return cluster, r, serve(t, r)
}

func TestEtcdctlGivesTheSameAnswers(t *testing.T) {
	cluster, _, srv := twinsForTools(t)
	for _, args := range []string{
		"get a", "get --prefix b/", "get --prefix b/ --keys-only", "get --prefix b/ --rev=5",
		"get --from-key a --count-only -w fields --consistency=s", "get a d", "get --from-key b", "get --limit=2 --prefix b",
		"get --prefix b --sort-by=MODIFY --order=DESCEND", "get --prefix b --sort-by=VALUE", "get none",
		"get a --print-value-only", "get a --consistency=s", "get a --rev=100", "get --prefix b --min-mod-rev=5",
		"lease list", "alarm list", "auth status",
	} {
		want, wantErr, wantOK := etcdctl(t, cluster.Endpoints()[0], strings.Fields(args)...)
		got, gotErr, gotOK := etcdctl(t, srv.addr, strings.Fields(args)...)
		if strings.Contains(args, "fields") { // names the members
			want, got = after(want, `"Revision"`), after(got, `"Revision"`)
			want, got = strings.Replace(want, after(want, `"RaftTerm"`), "", 1), strings.Replace(got, after(got, `"RaftTerm"`), "", 1)
		}
		if got != want || gotOK != wantOK || lastLine(gotErr) != lastLine(wantErr) {
			t.Errorf("etcdctl %s:\nmirror: %v %q %q\netcd:   %v %q %q", args, gotOK, got, lastLine(gotErr), wantOK, want, lastLine(wantErr))
		}
	}
}

// after returns what follows sep in s, with it.
func after(s, sep string) string {
	if i := strings.Index(s, sep); i >= 0 {
		return s[i:]
	}
	return ""
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func TestEtcdctlOnAMirror(t *testing.T) {
	_, r, srv := twinsForTools(t)
	for _, test := range []struct {
		args string
		ok   bool
		want string
	}{
		{"endpoint health", true, "is healthy"},
		{"endpoint status -w simple", true, ", 3.7.3, "},
		{"endpoint hashkv", true, srv.addr},
		{"member list", true, "http://mirror.example:2379"},
		{"put a 1", false, "read-only mirror; send it to the source, cluster prod-us (10.0.0.5:7400)"},
		{"del a", false, "read-only mirror"},
		{"compact 3", false, "read-only mirror"},
		{"lease grant 60", false, "read-only mirror"},
		{"lock l true", false, "read-only mirror"},
		{"elect e me", false, "read-only mirror"},
		{"user list", false, "read-only mirror"},
		{"role list", false, "read-only mirror"},
		{"member add x --peer-urls=http://127.0.0.1:1", false, "read-only mirror"},
		{"move-leader 1", false, ""},
		{"defrag", false, "read-only mirror"},
	} {
		out, talk, ok := etcdctl(t, srv.addr, strings.Fields(test.args)...)
		if ok != test.ok || !strings.Contains(out+talk, test.want) {
			t.Errorf("etcdctl %s: %v\n%s%s\nwant %v with %q", test.args, ok, out, talk, test.ok, test.want)
		}
	}
	lines := make(chan string, 100)
	start(t, func(s string) { lines <- s }, "etcdctl", "--endpoints="+srv.addr, "watch", "--prefix", "b/", "--rev=1", "--prev-kv")
	r.put("b/z", "live")
	for _, want := range []string{"PUT", "b/x", "3", "PUT", "b/y", "4", "PUT", "b/x", "3", "b/x", "5", "PUT", "b/z", "live"} {
		select {
		case got := <-lines:
			if got == "" { // the previous value of a key that had none
				got = <-lines
			}
			if got != want {
				t.Errorf("watch: %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("watch: nothing, want %q", want)
		}
	}
}

func TestSnapshotSavedFromAMirrorRestores(t *testing.T) {
	cluster, r, srv := twinsForTools(t)
	r.put("f", "applied after the snapshot that the mirror began with")
	rev := r.Applied()
	want, _, _, err := r.HashKV(t.Context(), rev)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "saved.db")
	if out, talk, ok := etcdctl(t, srv.addr, "snapshot", "save", path); !ok {
		t.Fatalf("snapshot save: %s%s", out, talk)
	}
	cluster.Restore(t, path)
	if got, _ := cluster.HashKV(t, rev); got != want || cluster.Revision(t) != rev {
		t.Errorf("restored at revision %d with hash %d, want %d with %d", cluster.Revision(t), got, rev, want)
	}
	if _, err := cluster.Client(t).Put(call(t), "g", "writable again"); err != nil {
		t.Error(err)
	}
}

func TestEtcdctlMakeMirrorFromAMirror(t *testing.T) {
	_, r, srv := twinsForTools(t)
	dest := etcdtest.Start(t, etcdtest.Options{})
	start(t, func(string) {}, "etcdctl", "--endpoints="+srv.addr, "make-mirror", strings.TrimPrefix(dest.Endpoints()[0], "http://"))
	c := dest.Client(t)
	value := func(key string) string {
		resp, err := c.Get(call(t), key)
		if err != nil || len(resp.Kvs) == 0 {
			return ""
		}
		return string(resp.Kvs[0].Value)
	}
	until(t, "copied", func() bool { return value("b/x") == "5" && value("e") == "7" })
	r.put("b/x", "followed")
	until(t, "followed", func() bool { return value("b/x") == "followed" })
}

func TestGRPCProxyInFrontOfAMirror(t *testing.T) {
	_, r, srv := twinsForTools(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	lis.Close()
	start(t, func(string) {}, "etcd", "grpc-proxy", "start", "--endpoints="+srv.addr, "--listen-addr="+addr, "--data-dir="+t.TempDir())
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "the proxy answers", func() bool {
		resp, err := c.Get(within(t, time.Second), "b/x")
		return err == nil && len(resp.Kvs) == 1 && string(resp.Kvs[0].Value) == "5"
	})
	ctx, cancel := context.WithCancel(call(t))
	defer cancel()
	w := c.Watch(ctx, "b/x", clientv3.WithRev(1))
	r.put("b/x", "6")
	var values []string
	for len(values) < 3 {
		wr := <-w
		if wr.Err() != nil {
			t.Fatal(wr.Err())
		}
		for _, ev := range wr.Events {
			values = append(values, string(ev.Kv.Value))
		}
	}
	if got := strings.Join(values, ","); got != "3,5,6" {
		t.Errorf("watched %s", got)
	}
}
