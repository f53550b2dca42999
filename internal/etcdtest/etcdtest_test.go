package etcdtest_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph/internal/etcdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBinaryRuns(t *testing.T) {
	for _, name := range []string{"etcd", "etcdctl", "etcdutl"} {
		if info, err := os.Stat(etcdtest.Binary(t, name)); err != nil || info.Mode()&0o100 == 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestClusterSurvivesKillOfLeader(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	client := c.Client(t)
	load := etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Deletes: true, Txns: true, Leases: true})
	waitFor(t, "a write", func() bool { return load.Written() > 0 })

	leader := c.Leader(t)
	c.Member(leader).Kill()
	if pid := c.Member(leader).PID(); pid != 0 {
		t.Errorf("killed member has process %d", pid)
	}
	if next := c.Leader(t); next == leader {
		t.Errorf("member %d leads after it was killed", leader)
	}
	before := load.Written()
	waitFor(t, "a write after the kill", func() bool { return load.Written() > before })
	load.Stop()

	c.Member(leader).Restart()
	c.WaitReady(t)
	rev := c.Revision(t)
	if rev < load.Written() {
		t.Errorf("revision %d after %d acknowledged writes", rev, load.Written())
	}
	want, _ := c.HashKV(t, rev)
	for _, m := range c.Members() {
		waitFor(t, "the same hash at "+m.Name(), func() bool {
			got, _, err := etcdtest.HashKV(t.Context(), client, m.Endpoint(), rev)
			return err == nil && got == want
		})
	}
}

func TestPausedMemberIsSilent(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	c.Member(0).Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := client.Get(ctx, "k"); err == nil {
		t.Error("a paused member answered")
	}
	c.Member(0).Resume()
	if _, err := client.Get(t.Context(), "k"); err != nil {
		t.Errorf("resumed member: %v", err)
	}
}

func TestFillIsMixed(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	rev := etcdtest.Fill(t, client, 3_000)
	if rev < 3_000 {
		t.Errorf("revision %d after 3,000 writes", rev)
	}
	var puts, deletes, leases, txns int
	var last int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for resp := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(1)) {
		for _, ev := range resp.Events {
			switch {
			case ev.Type == clientv3.EventTypeDelete:
				deletes++
			default:
				puts++
			}
			if ev.Kv.Lease != 0 {
				leases++
			}
			if ev.Kv.ModRevision == last {
				txns++
			}
			last = ev.Kv.ModRevision
		}
		if last == rev {
			break
		}
	}
	if puts == 0 || deletes == 0 || leases == 0 || txns == 0 {
		t.Errorf("puts %d, deletes %d, leases %d, further events of one revision %d: want some of each", puts, deletes, leases, txns)
	}
}

func TestRestoreGoesBack(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	old := etcdtest.Fill(t, client, 500)
	want, _ := c.HashKV(t, 0)
	snapshot := c.Save(t)
	etcdtest.Fill(t, client, 500)
	c.Restore(t, snapshot)
	if got := c.Revision(t); got != old {
		t.Errorf("revision %d after the restore: want %d", got, old)
	}
	if got, _ := c.HashKV(t, 0); got != want {
		t.Errorf("hash %08x after the restore: want %08x", got, want)
	}
	c.Wipe(t)
	c.Restart(t)
	if got := c.Revision(t); got != 1 {
		t.Errorf("revision %d after the wipe: want 1", got)
	}
}

func TestTLSAndAuth(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{TLS: true})
	stranger := c.Client(t)
	c.EnableAuth(t, "secret")
	if _, err := stranger.Get(t.Context(), "k"); err == nil {
		t.Error("a client without a name may read")
	}
	if _, err := c.Client(t).Put(t.Context(), "k", "v"); err != nil {
		t.Errorf("root: %v", err)
	}
	if out := c.Etcdctl(t, "get", "k", "--print-value-only"); strings.TrimSpace(out) != "v" {
		t.Errorf("etcdctl get: %q", out)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("no %s in 30 s", what)
		case <-tick.C:
		}
	}
}
