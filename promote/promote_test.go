package promote_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
	"github.com/heliograph/heliograph/store"
)

// The promoted etcd is the source at revision R, and goes on with R+1 under an id
// of its own; the record and the file say where that was.
func TestPromoted(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, source.Client(t), 2000)
	dir := t.TempDir()
	rev := follow(t, source, dir)
	rev = func() int64 { // what follows the snapshot, too
		etcdtest.Fill(t, source.Client(t), 500)
		if _, err := source.Client(t).Compact(t.Context(), rev/2); err != nil {
			t.Fatal(err)
		}
		return follow(t, source, dir)
	}()
	compacted := waitCompacted(t, source, dir)
	want := sourceSum(t, source, rev)
	if want.compacted != compacted {
		t.Fatalf("the replica is compacted at %d, the source at %d", compacted, want.compacted)
	}

	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	cfg.LastKnownRevision = rev + 3
	rec := mustPromote(t, cfg)
	if rec.State != promote.Promoted || rec.Revision != rev || rec.First() != rev+1 || rec.MissingRevisions != 3 || rec.By != "test" || rec.Finished.IsZero() {
		t.Errorf("record %+v, want promoted at %d with 3 missing", rec, rev)
	}
	origin, err := heliograph.ParseOrigin(rec.Origin)
	if err != nil || origin.Cluster != "prod-us" {
		t.Errorf("origin %q, %v", rec.Origin, err)
	}
	read, ok, err := promote.Read(dir)
	if err != nil || !ok || !reflect.DeepEqual(read, rec) {
		t.Errorf("Read: %+v, %v, %v; want %+v", read, ok, err, rec)
	}

	s := serve(t, dir, rec)
	if got := hash(t, s.client, s.url, rev); got != want {
		t.Errorf("HashKV of the promoted is %+v, of the source %+v", got, want)
	}
	status, err := s.client.Status(t.Context(), s.url)
	if err != nil {
		t.Fatal(err)
	}
	if id := status.Header.ClusterId; id == origin.EtcdID || heliograph.EtcdID(id) != rec.EtcdID {
		t.Errorf("cluster id %x, want %s, and not %x", id, rec.EtcdID, origin.EtcdID)
	}
	if got := put(t, s.client, "new", "1"); got != rev+1 {
		t.Errorf("first write has revision %d, want %d", got, rev+1)
	}
	s.stop()

	// Once more changes nothing, and neither does a start of the node.
	if err := promote.NoteAudit(dir); err != nil {
		t.Fatal(err)
	}
	if noted, _, err := promote.Read(dir); rec.Audited || !noted.Audited || noted.Token != rec.Token || err != nil {
		t.Errorf("noted in the record: %+v, %v", noted, err)
	}
	rec.Audited = true
	again, err := promote.Promote(t.Context(), promote.Config{Dir: dir, Cluster: "other", BumpRevision: 7})
	if err != nil || !reflect.DeepEqual(again, rec) {
		t.Errorf("second promotion: %+v, %v; want %+v", again, err, rec)
	}
	promoted, recovered, err := promote.Recover(dir, database, nil)
	if err != nil || !promoted || !reflect.DeepEqual(recovered, rec) {
		t.Errorf("Recover: %v %+v, %v", promoted, recovered, err)
	}

	// etcd's own programs take the directory over.
	data := promote.EtcdDir(dir, database)
	if out := tool(t, "etcdutl", "hashkv", "--rev", fmt.Sprint(rev), filepath.Join(data, "member", "snap", "db")); !strings.Contains(out, fmt.Sprintf("%d", want.hash)) && !strings.Contains(out, fmt.Sprintf("%x", want.hash)) {
		t.Errorf("etcdutl hashkv says %q, want %d (%x)", out, want.hash, want.hash)
	}
	url := localURLs(t, 1)[0]
	startMember(t, rec.Name, data, url, cfg.PeerURLs[0])
	c := client(t, url, "")
	waitRevision(t, c, rev+1)
	if got := hash(t, c, url, rev); got != want {
		t.Errorf("HashKV after a restart is %+v, want %+v", got, want)
	}
	if got := put(t, c, "new", "2"); got != rev+2 {
		t.Errorf("write after a restart has revision %d, want %d", got, rev+2)
	}
}

// waitCompacted follows until the replica has the source's compaction revision.
func waitCompacted(t *testing.T, source *etcdtest.Cluster, dir string) int64 {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		_, want := source.HashKV(t, 0)
		st := openStore(t, dir)
		got := st.Compacted()
		if got < want {
			st.Compact(want)
			waitStore(t, st, func() bool { return st.Compacted() == want })
		}
		closeStore(t, st)
		if got == want {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("compacted at %d, want %d", got, want)
		}
	}
}

// A watch goes on where it was, and history before the promotion is readable.
func TestWatchResumes(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, source.Client(t), 300)
	dir := t.TempDir()
	follow(t, source, dir)
	want := events(t, source.Client(t), rev-100, rev)

	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	s := serve(t, dir, mustPromote(t, cfg))
	defer s.stop()
	put(t, s.client, "new", "1")
	got := events(t, s.client, rev-100, rev+1)
	if n := len(got); n != len(want)+1 || got[n-1] != fmt.Sprintf("PUT new=1 @%d", rev+1) || !reflect.DeepEqual(got[:n-1], want) {
		t.Errorf("got %d events, want the source's %d and the new write", n, len(want))
	}
}

// events returns what a watch sees of the revisions from..to.
func events(t *testing.T, c *clientv3.Client, from, to int64) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []string
	for resp := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision > to {
				return out
			}
			out = append(out, fmt.Sprintf("%s %s=%s @%d", e.Type, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision))
		}
		if resp.Header.Revision >= to && len(resp.Events) > 0 && resp.Events[len(resp.Events)-1].Kv.ModRevision == to {
			return out
		}
	}
	t.Fatalf("the watch ended after %d events: %v", len(out), ctx.Err())
	return nil
}

// With a bump, the revisions between do not exist, and those before are compacted:
// nobody sees a revision with two contents.
func TestBump(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, source.Client(t), 500)
	dir := t.TempDir()
	follow(t, source, dir)
	keys := allKeys(t, source.Client(t))

	const bump = 1_000_000
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	cfg.BumpRevision = bump
	rec := mustPromote(t, cfg)
	if rec.Bump != bump || rec.First() != rev+bump+1 {
		t.Errorf("record %+v: want first %d", rec.Fork, rev+bump+1)
	}
	s := serve(t, dir, rec)
	if got := put(t, s.client, "new", "1"); got != rev+bump+1 {
		t.Errorf("first write has revision %d, want %d", got, rev+bump+1)
	}
	// A watch from the compaction revision itself is no error in etcd; nothing
	// is there to be seen.
	for _, from := range []int64{rev - 10, rev + 1, rev + bump - 1} {
		wantCompacted(t, s.client, from, rev+bump)
	}
	for _, from := range []int64{rev + bump, rev + bump + 1} {
		if got := events(t, s.client, from, rev+bump+1); len(got) != 1 {
			t.Errorf("a watch from %d sees %q", from, got)
		}
	}
	if _, err := s.client.Delete(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	if got := allKeys(t, s.client); got != keys {
		t.Error("the keys are not the source's")
	}
	// What is left of the history is the source's, compacted at its head. A
	// restart makes etcd forget the hash that it took before compacting.
	if _, err := source.Client(t).Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	source.Restart(t)
	if got, want := hash(t, s.client, s.url, rev+bump), sourceSum(t, source, rev); got.hash != want.hash || got.compacted != rev+bump {
		t.Errorf("HashKV %+v, want the hash of %+v at compaction revision %d", got, want, rev+bump)
	}
	s.stop()
	s = serve(t, dir, rec)
	defer s.stop()
	if got := put(t, s.client, "new", "3"); got != rev+bump+3 {
		t.Errorf("write after a restart has revision %d, want %d", got, rev+bump+3)
	}
}

func wantCompacted(t *testing.T, c *clientv3.Client, from, at int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp := <-c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(from))
	if resp.CompactRevision != at || !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
		t.Errorf("watch from %d: compact revision %d, %v; want compacted at %d", from, resp.CompactRevision, resp.Err(), at)
	}
}

// allKeys returns every key with its value and revisions.
func allKeys(t *testing.T, c *clientv3.Client) string {
	t.Helper()
	resp, err := c.Get(t.Context(), "\x00", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, kv := range resp.Kvs {
		fmt.Fprintln(&out, kv)
	}
	return out.String()
}

// The promoted member grows to a cluster of three, by snapshot and by log.
func TestMemberAdd(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, source.Client(t), 1000)
	dir := t.TempDir()
	follow(t, source, dir)
	want := sourceSum(t, source, rev)
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	cfg.Name = "m0"
	s := serve(t, dir, mustPromote(t, cfg))
	defer s.stop()

	cluster := "m0=" + cfg.PeerURLs[0]
	for i := 1; i <= 2; i++ {
		urls := localURLs(t, 2)
		name := fmt.Sprintf("m%d", i)
		cluster += "," + name + "=" + urls[1]
		addMember(t, s.url, name, urls[1])
		startMember(t, name, t.TempDir(), urls[0], urls[1], "--initial-cluster="+cluster, "--initial-cluster-state=existing")
		c := client(t, urls[0], "")
		waitRevision(t, c, rev)
		waitPut(t, c, "from/"+name)
		if got := hash(t, c, urls[0], rev); got != want {
			t.Errorf("%s has HashKV %+v, want %+v", name, got, want)
		}
	}
	members, err := s.client.MemberList(t.Context())
	if err != nil || len(members.Members) != 3 {
		t.Fatalf("members: %v, %v", members, err)
	}
	if got := hash(t, s.client, s.url, rev); got != want {
		t.Errorf("HashKV %+v, want %+v", got, want)
	}
}

// addMember asks until etcd agrees: it adds no member before all have been
// connected for five seconds.
func addMember(t *testing.T, endpoint, name, peer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, etcdtest.Binary(t, "etcdctl"), "--endpoints="+endpoint, "member", "add", name, "--peer-urls="+peer).CombinedOutput()
		if err == nil {
			return
		}
		if ctx.Err() != nil || !strings.Contains(string(out), "unhealthy cluster") {
			t.Fatalf("member add %s: %v\n%s", name, err, out)
		}
	}
}

// waitPut writes through a member that may have no leader yet.
func waitPut(t *testing.T, c *clientv3.Client, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, err := c.Put(ctx, key, "x")
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("put: %v", err)
		}
	}
}

// A promotion that is given up before its commit leaves the mirror.
func TestCancelled(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, source.Client(t), 200)
	dir := t.TempDir()
	rev := follow(t, source, dir)
	ctx, cancel := context.WithCancel(t.Context())
	promote.OnStep(func(s string) {
		if s == "built" {
			cancel()
		}
	})
	defer promote.OnStep(func(string) {})
	if _, err := promote.Promote(ctx, config(dir)); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if rec, ok, err := promote.Read(dir); !ok || err != nil || rec.State != promote.TakenBack || rec.By != "test" {
		t.Errorf("the record for the audit: %+v, %v, %v", rec, ok, err)
	}
	if promoted, _, err := promote.Recover(dir, database, nil); promoted || err != nil {
		t.Errorf("recovered: %v, %v", promoted, err)
	}
	if err := promote.NoteAudit(dir); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := promote.Read(dir); ok || err != nil {
		t.Errorf("a record is left: %v, %v", ok, err)
	}
	if got, at := mirrorSum(t, dir); got != sourceSum(t, source, rev) || at != rev {
		t.Errorf("the mirror has %+v at %d", got, at)
	}
	etcdtest.Fill(t, source.Client(t), 100)
	follow(t, source, dir)
}

// Package store takes no promoted file for a replica.
func TestStoreRefusesPromoted(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, source.Client(t), 100)
	dir := t.TempDir()
	follow(t, source, dir)
	mustPromote(t, config(dir))
	other := t.TempDir()
	replace(t, filepath.Join(promote.EtcdDir(dir, database), "member", "snap", "db"), filepath.Join(other, "default.db"))
	st, err := store.Open(store.Config{Dir: other})
	if err == nil {
		closeStore(t, st)
		t.Fatal("it was opened")
	}
	if _, err := promote.Promote(t.Context(), config(other)); err == nil || !strings.Contains(err.Error(), "promoted already") {
		t.Errorf("promoted again: %v", err)
	}
}
