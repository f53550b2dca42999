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
	"github.com/heliograph/heliograph/internal/proctest"
)

// joined adds a member to the cluster of a promoted node, and starts it: a real
// etcd, as `etcdctl member add` says.
func joined(t *testing.T, n *heliotest.Node, name, initial string) (url, all string) {
	t.Helper()
	ports := proctest.FreePorts(t, 2)
	url = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	// etcd refuses until the member before has been connected for some seconds.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, etcdtest.Binary(t, "etcdctl"), "--endpoints", n.Clients, "member", "add", name, "--peer-urls", peer).CombinedOutput()
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("member add %s: %v\n%s", name, err, out)
		}
	}
	all = initial + "," + name + "=" + peer
	p := proctest.New(t, name, filepath.Join(t.TempDir(), name+".log"), etcdtest.Binary(t, "etcd"),
		"--name", name, "--data-dir", filepath.Join(t.TempDir(), name), "--unsafe-no-fsync",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", all, "--initial-cluster-state", "existing")
	p.Start()
	awaitEtcd(t, url)
	return url, all
}

// awaitEtcd waits until the etcd at url answers a linearizable read.
func awaitEtcd(t *testing.T, url string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: time.Minute, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := etcdtest.Revision(ctx, c)
		cancel()
		if err == nil {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", url, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// The promoted etcd is an ordinary member: `etcdctl member add` makes a cluster of
// three of it, which loses it, goes on, and has it back.
func TestPromotedGrowsToThreeMembers(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 1000)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitApplied(rev)
	wantHash, _ := etcd.HashKV(t, rev)
	lose(etcd, source)
	awaitLoss(mirror)
	rec := mirror.Promote()
	client := awaitEtcd(t, mirror.Clients)

	second, all := joined(t, mirror, "second", rec.Name+"="+mirror.Peer)
	third, _ := joined(t, mirror, "third", all)
	last := mirror.Put(client, "to all", "1")
	for _, url := range []string{mirror.Clients, second, third} {
		c := awaitEtcd(t, url)
		for at, want := range map[int64]uint32{rev: wantHash, last: 0} {
			hash, _, err := etcdtest.HashKV(t.Context(), c, url, at)
			if err != nil || want != 0 && hash != want {
				t.Errorf("%s: HashKV %08x at revision %d, %v; want %08x", url, hash, at, err, want)
			}
		}
	}
	if list := etcdtest.Etcdctl(t, "--endpoints", third, "member", "list"); strings.Count(list, "started") != 3 {
		t.Errorf("members:\n%s", list)
	}

	mirror.Kill()
	c := awaitEtcd(t, third)
	put(t, c, "without it", 1)
	mirror.Start()
	s := mirror.WaitStatus("level with the others", time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Promoted && s.AppliedRevision > last
	})
	if got, _ := mirror.HashKV(s.AppliedRevision); got == 0 {
		t.Errorf("HashKV %08x", got)
	}
}

// A promoted node starts with the same command line although its certificates for
// other nodes are gone, and what it served mirrors on is taken.
func TestPromotedStartsWithoutCertificates(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	rev := put(t, client, "a", 100)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := pki.Mirror("prod-eu", source, true)
	leaf := pki.Mirror("prod-asia", relay, false)
	leaf.WaitApplied(rev)
	rec := relay.Promote("--force") // with mirrors below, and a source above that lives
	if rec.Revision != rev || rec.MissingRevisions != 0 {
		t.Errorf("record %+v", rec)
	}
	// The mirror below does not follow the new cluster by itself.
	awaitLoss(leaf)
	at := awaitEtcd(t, relay.Clients)
	relay.Put(at, "fork", "1")
	relay.Kill()
	for _, ext := range []string{"crt", "key"} {
		files, err := filepath.Glob(filepath.Join(pki.Dir(), "prod-eu-*."+ext))
		if err != nil || len(files) != 1 {
			t.Fatalf("certificates %v, %v", files, err)
		}
		if err := os.Remove(files[0]); err != nil {
			t.Fatal(err)
		}
	}
	relay.Start()
	if s := relay.WaitPromoted(); s.AppliedRevision != rev+1 {
		t.Errorf("status %+v", s)
	}
	if s, err := leaf.Status(); err != nil || s.AppliedRevision != rev {
		t.Errorf("the mirror below: %+v, %v", s, err)
	}
}

// A source node can be promoted beside its lost etcd, and one whose revisions were
// bumped tells watchers from before to read anew.
func TestSourceNodePromotedWithABump(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	source.WaitFollowing()
	rev := put(t, client, "a", 50)
	source.WaitApplied(rev)
	if _, err := source.TryPromote(); err == nil || !strings.Contains(err.Error(), "its etcd answers") {
		t.Errorf("with its etcd: %v", err)
	}
	etcd.Member(0).Kill()
	awaitLoss(source)
	if plan := source.Plan(); !plan.Bump.Needed || len(plan.Refusals) > 0 {
		t.Errorf("plan %+v", plan)
	}
	const bump = 1_000_000
	rec := source.Promote("--bump-revision", fmt.Sprint(bump))
	at := awaitEtcd(t, source.Clients)
	if got := source.Put(at, "b", "1"); got != rec.First() || got != rev+bump+1 {
		t.Errorf("the first write has revision %d, want %d", got, rev+bump+1)
	}
	watch := at.Watch(t.Context(), "a", clientv3.WithPrefix(), clientv3.WithRev(rev+1))
	if resp := <-watch; resp.CompactRevision != rev+bump {
		t.Errorf("a watch from before: %+v", resp)
	}
	if s := source.WaitPromoted(); s.CompactRevision != rev+bump || s.AppliedRevision != rev+bump+1 {
		t.Errorf("status %+v", s)
	}
}

// What etcd clients had to show to the mirror, they have to show to the etcd.
func TestPromotionOverTLS(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{TLS: true}) // for its certificates
	ca, cert, key := etcd.TLSFiles()
	rev := put(t, etcd.Client(t), "a", 20)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints(), "--etcd-cacert", ca, "--etcd-cert", cert, "--etcd-key", key)
	mirror := pki.Mirror("prod-eu", source, false, "--client-cert", cert, "--client-key", key, "--client-ca", ca)
	mirror.WaitApplied(rev)
	url := strings.Replace(mirror.Clients, "http:", "https:", 1)
	plan := mirror.Plan()
	if !plan.ClientCertificates || plan.ClientURLs[0] != url {
		t.Errorf("plan %+v", plan)
	}
	lose(etcd, source)
	awaitLoss(mirror)
	mirror.Promote()
	flags := []string{"--endpoints", url, "--cacert", ca, "--cert", cert, "--key", key}
	etcdtest.Etcdctl(t, append(flags, "put", "b", "1")...)
	if out := etcdtest.Etcdctl(t, append(flags, "get", "b", "-w", "fields")...); !strings.Contains(out, fmt.Sprintf(`"ModRevision" : %d`, rev+1)) {
		t.Errorf("%s", out)
	}
	conf := etcd.TLS()
	conf.Certificates = nil
	bare, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, TLS: conf, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := bare.Get(ctx, "b"); err == nil {
		t.Error("a client without a certificate may read")
	}
}
