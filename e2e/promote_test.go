package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/promote"
)

// lose ends the etcd and its source node for good.
func lose(etcd *etcdtest.Cluster, source *heliotest.Node) {
	for _, m := range etcd.Members() {
		m.Kill()
	}
	source.Kill()
}

// awaitLoss waits until the node knows that it has lost its upstream.
func awaitLoss(n *heliotest.Node) {
	n.WaitStatus("without its upstream", time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Degraded || s.Status == heliograph.Disconnected
	})
}

// The worst day: the source is gone. A mirror becomes an etcd at the same revision,
// with the same hash; a client's watch goes on without a gap; leases are there and
// begin again; it is promoted for good, also after a restart.
func TestPromotion(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	etcdtest.Fill(t, client, 2000)
	lease, err := client.Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(t.Context(), "leased", "v", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()

	at := mirror.Client()
	events := at.Watch(t.Context(), "watched/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if resp := <-events; resp.Err() != nil {
		t.Fatal(resp.Err())
	}
	put(t, client, "watched/", 5)
	rev := put(t, client, "last", 1)
	mirror.WaitApplied(rev)
	mirror.WaitStatus("with the lease", time.Minute, func(heliograph.Status) bool {
		ttl, err := at.TimeToLive(t.Context(), lease.ID)
		return err == nil && ttl.GrantedTTL == 600
	})
	wantHash, wantCompacted := etcd.HashKV(t, rev)
	lose(etcd, source)
	awaitLoss(mirror)

	plan := mirror.Plan()
	if len(plan.Refusals) > 0 || plan.AppliedRevision != rev || plan.MissingRevisions != 0 || plan.OriginAnswers || plan.PeerURL != mirror.Peer {
		t.Errorf("plan %+v", plan)
	}
	rec := mirror.Promote()
	if rec.State != promote.Promoted || rec.Revision != rev || rec.MissingRevisions != 0 || rec.By != "uid 0" && rec.By == "" || rec.Leases < 1 {
		t.Errorf("record %+v", rec)
	}
	s := mirror.WaitPromoted()
	if s.AppliedRevision != rev || s.HeadRevision != rev || s.Why == "" {
		t.Errorf("status %+v", s)
	}
	if hash, compacted := mirror.HashKV(rev); hash != wantHash || compacted != wantCompacted {
		t.Errorf("HashKV %08x compacted at %d, etcd had %08x at %d", hash, compacted, wantHash, wantCompacted)
	}
	ttl, err := at.TimeToLive(t.Context(), lease.ID)
	if err != nil || ttl.GrantedTTL != 600 || ttl.TTL < 500 {
		t.Errorf("lease %+v, %v", ttl, err)
	}

	if got := mirror.Put(at, "watched/new", "1"); got != rev+1 {
		t.Errorf("the first write has revision %d, want %d", got, rev+1)
	}
	seen := 0
	for seen < 6 {
		resp, ok := <-events
		if !ok || resp.Err() != nil {
			t.Fatalf("the watch has ended: %v", resp.Err())
		}
		for _, e := range resp.Events {
			want := fmt.Sprintf("watched/%d", seen)
			if seen == 5 {
				want = "watched/new"
			}
			if string(e.Kv.Key) != want {
				t.Fatalf("event %d is of %s, want %s", seen, e.Kv.Key, want)
			}
			seen++
		}
	}

	// Again is the same, and so is another life.
	if again := mirror.Promote(); again.Token != rec.Token {
		t.Errorf("promoted twice: %+v", again)
	}
	for range 2 {
		mirror.Restart()
		s = mirror.WaitPromoted()
	}
	if got := mirror.Put(at, "watched/restarted", "1"); got != rev+2 || s.AppliedRevision != rev+1 {
		t.Errorf("after restarts: revision %d, status %+v", got, s)
	}
	if code, took := mirror.Stop(10 * time.Second); code != 0 {
		t.Errorf("exit code %d after %s", code, took)
	}
}

// Users and roles come with a snapshot and with nothing else. When the source has
// changed them since, access control on or off among them, a promotion says so and
// wants to be forced; a resync brings them.
func TestPromotionKnowsOutdatedUsers(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	put(t, etcd.Client(t), "a", 5)
	pki := heliotest.NewPKI(t)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	source := pki.Source("prod-us", etcd.Endpoints(), "--etcd-user", "root", "--etcd-password-file", password)
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()
	outdated := func(want bool) func(heliograph.Status) bool {
		return func(heliograph.Status) bool { return (mirror.Plan().UsersOutdated != "") == want }
	}
	mirror.WaitStatus("of the same users", time.Minute, outdated(false))

	etcd.EnableAuth(t, "secret")
	mirror.WaitStatus("outdated", time.Minute, outdated(true))
	lose(etcd, source)
	awaitLoss(mirror)
	if rec, err := mirror.TryPromote(); err == nil || !strings.Contains(err.Error(), "access control on") {
		t.Fatalf("promoted: %+v, %v", rec, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	said, err := exec.CommandContext(t.Context(), heliotest.Binary(t), "export", "--admin", mirror.Socket(), "--out", out).CombinedOutput()
	if err == nil || !strings.Contains(string(said), "access control on") {
		t.Errorf("export: %v\n%s", err, said)
	}
	heliotest.Run(t, "export", "--admin", mirror.Socket(), "--out", out, "--force")

	etcd.Member(0).Start()
	source.Start()
	mirror.WaitFollowing()
	source.Resync()
	source.WaitFollowing()
	mirror.WaitStatus("resynced", time.Minute, func(heliograph.Status) bool { return mirror.TryResync() == nil }) // it connects again
	mirror.WaitStatus("of the same users again", time.Minute, outdated(false))
	mirror.WaitFollowing()
	lose(etcd, source)
	awaitLoss(mirror)
	mirror.Promote()
	mirror.WaitPromoted()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if resp, err := mirror.Client().Get(ctx, "a", clientv3.WithPrefix()); err == nil {
		t.Errorf("nobody has logged in, and reads %d keys", len(resp.Kvs))
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{mirror.Clients}, Username: "root", Password: "secret", DialTimeout: time.Minute, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if resp, err := root.Get(ctx, "a", clientv3.WithPrefix()); err != nil || len(resp.Kvs) != 5 {
		t.Errorf("root reads %+v, %v", resp, err)
	}
}
