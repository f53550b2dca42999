package e2e_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/internal/proctest"
)

// Etcds of the versions before ours are mirrored as exactly, through compactions and
// kills. What is exported runs on the same version again; what is promoted is an etcd
// of ours with their history.
func TestOlderEtcds(t *testing.T) {
	t.Parallel()
	for _, version := range etcdtest.Versions()[1:] {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			older(t, version)
		})
	}
}

func older(t *testing.T, version string) {
	etcd := etcdtest.Start(t, etcdtest.Options{Binary: etcdtest.BinaryOf(t, version, "etcd"), Members: 3})
	client := etcd.Client(t)
	rev := etcdtest.Fill(t, client, 2000)
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

	load := etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Workers: 4, Seed: seed(t), Deletes: true, Txns: true, Leases: true})
	compact(t, etcd, rev-500)
	source.Restart()
	etcd.Member(etcd.Leader(t)).Kill()
	source.WaitStatus("further", time.Minute, func(heliograph.Status) bool { return load.Written() > minTraffic/2 })
	mirror.Restart()
	rev = stop(t, etcd, load)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if _, err := client.Delete(t.Context(), "load/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	rev = put(t, client, "after", 10)
	compact(t, etcd, rev-10) // at the tombstones
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	for _, n := range []*heliotest.Node{source, mirror} {
		if v := n.Verify(); v.Result != heliograph.VerifyEqual {
			t.Errorf("%s: %+v", n.Name(), v)
		}
	}

	hash, compacted := etcd.HashKV(t, rev)
	for _, kind := range []string{"snapshot", "datadir"} {
		requireRuns(t, version, kind, mirror, rev, hash, compacted)
	}
	lose(etcd, source)
	awaitLoss(mirror)
	if rec := mirror.Promote(); rec.Revision != rev || rec.Leases < 1 {
		t.Errorf("record %+v", rec)
	}
	mirror.WaitPromoted()
	if got, at := mirror.HashKV(rev); got != hash || at != compacted {
		t.Errorf("HashKV %08x compacted at %d, etcd had %08x at %d", got, at, hash, compacted)
	}
	at := mirror.Client()
	if ttl, err := at.TimeToLive(t.Context(), lease.ID); err != nil || ttl.GrantedTTL != 600 || ttl.TTL < 500 {
		t.Errorf("lease %+v, %v", ttl, err)
	}
	mirror.Restart()
	mirror.WaitPromoted()
	if got := mirror.Put(at, "promoted", "1"); got != rev+1 {
		t.Errorf("the first write has revision %d, want %d", got, rev+1)
	}
}

// requireRuns exports what the mirror holds and has an etcd of that version serve it.
func requireRuns(t *testing.T, version, kind string, mirror *heliotest.Node, rev int64, hash uint32, compacted int64) {
	t.Helper()
	ports := proctest.FreePorts(t, 2)
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	out := filepath.Join(t.TempDir(), "out")
	args := []string{"export", "--admin", mirror.Socket(), "--kind", kind, "--out", out}
	if kind == "datadir" {
		args = append(args, "--peer-url", peer)
	}
	heliotest.Run(t, args...)
	dir := out
	if kind == "snapshot" {
		dir = filepath.Join(t.TempDir(), "restored")
		said, err := exec.CommandContext(t.Context(), etcdtest.BinaryOf(t, version, "etcdutl"), "snapshot", "restore", out, "--data-dir", dir,
			"--name", mirror.Cluster, "--initial-cluster", mirror.Cluster+"="+peer, "--initial-advertise-peer-urls", peer).CombinedOutput()
		if err != nil {
			t.Fatalf("restore: %v\n%s", err, said)
		}
	}
	name := "exported-" + kind
	proctest.New(t, name, filepath.Join(t.TempDir(), name+".log"), etcdtest.BinaryOf(t, version, "etcd"),
		"--name", mirror.Cluster, "--data-dir", dir, "--unsafe-no-fsync",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer).Start()
	c := awaitEtcd(t, client)
	h, err := c.HashKV(t.Context(), client, rev)
	if err != nil || h.Hash != hash || h.CompactRevision != compacted {
		t.Errorf("%s: HashKV %+v, %v; want %08x, compacted at %d", kind, h, err, hash, compacted)
	}
	if resp, err := c.Put(t.Context(), "exported", "1"); err != nil || resp.Header.Revision != rev+1 {
		t.Errorf("%s: the first write: %+v, %v; want revision %d", kind, resp, err, rev+1)
	}
}
