package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/node"
)

// verifyCommand runs `helio verify` and returns what it prints and its exit code.
func verifyCommand(t *testing.T, n *heliotest.Node) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	b, err := exec.CommandContext(ctx, heliotest.Binary(t), "verify", "--admin", n.Socket()).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(b), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b), 0
}

// Every node of a chain verifies against etcd, under load, while etcd compacts, and
// also if it keeps more history than etcd. Mirrors that ask at the same time share
// what it costs etcd.
func TestVerifyUnderLoad(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints(), "--verify-interval", "1s")
	relay := pki.Mirror("prod-eu", source, true, "--history", "1h")
	leaf := pki.Mirror("prod-asia", relay, false)
	leaf.WaitFollowing()
	load := fullLoad(t, client)
	equal, compacted := 0, int64(1)
	for i := range 12 {
		n := []*heliotest.Node{source, relay, leaf}[i%3]
		v := n.Verify()
		switch v.Result {
		case heliograph.VerifyEqual:
			equal++
			if v.Revision < 1 || v.Hash != v.EtcdHash || v.EtcdEndpoint == "" || v.At.IsZero() {
				t.Errorf("%s: %+v", n.Name(), v)
			}
		case heliograph.VerifyUnequal:
			t.Fatalf("%s: %+v", n.Name(), v)
		default:
			t.Logf("%s: %s", n.Name(), v.Why)
		}
		if rev := etcd.Revision(t) - int64(i*20); rev > compacted {
			compact(t, etcd, rev)
			compacted = rev
		}
	}
	if equal < 8 {
		t.Errorf("%d of 12 verifications were possible", equal)
	}
	rev := stop(t, etcd, load)
	leaf.WaitApplied(rev)
	for _, n := range []*heliotest.Node{source, relay, leaf} {
		out, code := verifyCommand(t, n)
		if code != 0 || !strings.Contains(out, "equal") {
			t.Errorf("%s: exit code %d\n%s", n.Name(), code, out)
		}
		s, err := n.Status()
		if err != nil || s.LastVerifyResult != heliograph.VerifyEqual || s.LastVerifiedRevision < 1 || s.LastVerifyWhy != "" || s.LastVerifiedAt.IsZero() {
			t.Errorf("%s: status %+v, %v", n.Name(), s, err)
		}
		if n.Metric("heliograph_verified_revision") < 1 || n.Metric("heliograph_verified_age_seconds") < 0 {
			t.Errorf("%s: no verification in the metrics", n.Name())
		}
	}
}

// Row 27: a bit rots in a mirror's file while it runs. Verification finds it; a
// resync mends it.
func TestRow27BitRot(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	if _, err := client.Put(t.Context(), "b", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "c", 50)
	mirror.WaitStatus("durable", time.Minute, func(s heliograph.Status) bool { return s.DurableRevision >= rev })
	if v := mirror.Verify(); v.Result != heliograph.VerifyEqual {
		t.Fatalf("before: %+v", v)
	}
	flip(t, mirror, marker)
	out, code := verifyCommand(t, mirror)
	if code != 1 || !strings.Contains(out, "unequal") || !strings.Contains(out, "HashKV at revision") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	requireDiverged(t, mirror, rev, "HashKV at revision")
	if v := source.Verify(); v.Result != heliograph.VerifyEqual {
		t.Errorf("the source: %+v", v)
	}
	mirror.Resync()
	heliotest.RequireEqual(t, etcd, put(t, client, "d", 10), source, mirror)
	if out, code := verifyCommand(t, mirror); code != 0 {
		t.Errorf("after the resync: exit code %d\n%s", code, out)
	}
}

// While the source is lost, what a mirror holds may be the only copy: neither does an
// operator drop it without saying so, nor the mirror by itself.
func TestResyncKeepsTheOnlyCopy(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	damaged := pki.Mirror("prod-ap", source, false, "--on-divergence", "resync")
	if _, err := client.Put(t.Context(), "b", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "c", 50)
	source.WaitStatus("durable", time.Minute, func(s heliograph.Status) bool { return s.DurableRevision >= rev })
	mirror.WaitApplied(rev)
	stopAt(t, rev, damaged)
	flip(t, damaged, marker)
	lose(etcd, source)
	damaged.Start()
	damaged.WaitDiverged()
	awaitLoss(mirror)
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(damaged.Log(), "no resync by itself before the upstream answers") {
		if time.Now().After(deadline) {
			t.Fatal("the damaged mirror says nothing of what it waits for")
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, n := range []*heliotest.Node{mirror, damaged} {
		err := n.TryResync()
		if err == nil || !strings.Contains(err.Error(), "only copy") || !strings.Contains(err.Error(), "helio promote") || !strings.Contains(err.Error(), "helio export") {
			t.Errorf("%s: %v", n.Name(), err)
		}
		if s, err := n.Status(); err != nil || s.AppliedRevision != rev {
			t.Errorf("%s holds revision %d, %v, want %d", n.Name(), s.AppliedRevision, err, rev)
		}
	}
	mirror.Resync("--force")
	if s, err := mirror.Status(); err != nil || s.AppliedRevision != 0 {
		t.Errorf("forced: it holds revision %d, %v", s.AppliedRevision, err)
	}
	for _, want := range []string{"forced=false outcome=refused", `forced=true outcome="the replica is dropped"`} {
		if strings.Count(mirror.Log(), want) != 1 {
			t.Errorf("no line of audit has %s", want)
		}
	}

	etcd.Restart(t)
	source.Start()
	heliotest.RequireEqual(t, etcd, put(t, etcd.Client(t), "d", 10), source, mirror, damaged)
	if got := damaged.Snapshots(); got != 2 {
		t.Errorf("the damaged mirror has installed %d snapshots, want 2", got)
	}
	mirror.Resync() // with its source back
	mirror.WaitApplied(rev)
}

// Etcd was compacted at its newest revision and rests: it and the nodes remember the
// hash of the compaction. The files are read all the same.
func TestBitRotIsFoundBesideAnIdleEtcd(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	if _, err := client.Put(t.Context(), "b", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "c", 50)
	compact(t, etcd, rev-20)
	mirror.WaitCompacted(rev - 20)
	compact(t, etcd, rev)
	mirror.WaitCompacted(rev)
	for _, n := range []*heliotest.Node{source, mirror} {
		if v := n.Verify(); v.Result != heliograph.VerifyEqual || v.Revision != rev || v.CompactRevision != rev {
			t.Fatalf("%s: %+v", n.Name(), v)
		}
	}
	flip(t, mirror, marker)
	if v := mirror.Verify(); v.Result != heliograph.VerifyUnequal {
		t.Errorf("after a bit has rotted: %+v", v)
	}
}

// What a verification has found lasts: a mirror that differs from etcd is diverged
// after a restart, too, and is neither promoted nor exported unless by force.
func TestUnequalLastsOverRestarts(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	if _, err := client.Put(t.Context(), "b", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "c", 50)
	mirror.WaitApplied(rev)
	compact(t, etcd, rev-10) // what is below is not compared when the file is opened
	mirror.WaitCompacted(rev - 10)
	if v := mirror.Verify(); v.Result != heliograph.VerifyEqual {
		t.Fatalf("before: %+v", v)
	}
	flip(t, mirror, marker)
	if v := mirror.Verify(); v.Result != heliograph.VerifyUnequal {
		t.Fatalf("%+v", v)
	}
	before := mirror.WaitDiverged()
	if code, _ := mirror.Stop(20 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	_, err := node.ExportDir(t.Context(), mirror.DataDir, node.ExportOptions{Out: filepath.Join(t.TempDir(), "snapshot")}, nil)
	if err == nil || !strings.Contains(err.Error(), "HashKV at revision") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("exported: %v", err)
	}
	mirror.Start()
	if s := mirror.WaitDiverged(); s.Why != before.Why {
		t.Errorf("after the restart: %q, before: %q", s.Why, before.Why)
	}
	if err := mirror.Ready(); err == nil {
		t.Error("ready")
	}
	lose(etcd, source)
	if rec, err := mirror.TryPromote(); err == nil || !strings.Contains(err.Error(), "diverged") {
		t.Errorf("promoted: %+v, %v", rec, err)
	}
	if code, _ := mirror.Stop(20 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := node.ExportDir(t.Context(), mirror.DataDir, node.ExportOptions{Out: filepath.Join(t.TempDir(), "snapshot"), Force: true}, nil); err != nil {
		t.Errorf("exported by force: %v", err)
	}
}

// Row 28: what could not be checked is unknown and not equal, everywhere; and what
// was proved before keeps its age.
func TestRow28UnknownIsNotEqual(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false, "--verify-interval", "1s")
	source.WaitStatus("answering", time.Minute, func(heliograph.Status) bool { return true })
	if v := source.Verify(); v.Result == heliograph.VerifyUnequal {
		t.Errorf("at the start: %+v", v)
	}
	mirror.WaitApplied(put(t, client, "a", 100))
	good := mirror.WaitStatus("verified by itself", time.Minute, func(s heliograph.Status) bool { return s.LastVerifyResult == heliograph.VerifyEqual })

	etcd.Member(0).Kill()
	source.WaitStatus("without etcd", time.Minute, func(s heliograph.Status) bool { return s.Status != heliograph.Following })
	for _, n := range []*heliotest.Node{source, mirror} {
		n.WaitStatus("not verified", 3*time.Minute, func(heliograph.Status) bool { return n.Verify().Result == heliograph.VerifyUnknown })
		out, code := verifyCommand(t, n)
		if code != 1 || !strings.Contains(out, "unknown") || strings.Contains(out, "RESULT   equal") {
			t.Errorf("%s: exit code %d\n%s", n.Name(), code, out)
		}
		s, err := n.Status()
		if err != nil || s.LastVerifyResult != heliograph.VerifyUnknown || s.LastVerifyWhy == "" || s.Status == heliograph.Diverged {
			t.Errorf("%s: %+v, %v", n.Name(), s, err)
		}
	}
	s, err := mirror.Status()
	if err != nil || s.LastVerifiedRevision < good.LastVerifiedRevision || s.LastVerifiedAt.Before(good.LastVerifiedAt) {
		t.Errorf("what was proved is forgotten: %+v, %v", s, err)
	}
	if age := mirror.Metric("heliograph_verified_age_seconds"); age <= 0 {
		t.Errorf("the age of the proof is %v", age)
	}
}

// verifyManyRecords has the source node of a helio follow 15,000 records, on keys
// that are written once, and verifies.
func verifyManyRecords(t *testing.T, binary string) heliograph.Verification {
	t.Helper()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	source := heliotest.NewPKI(t).With(t, binary).Source("prod-us", etcd.Endpoints(), "--verify-interval", "0")
	source.WaitFollowing()
	rev := int64(0)
	for i := range 150 {
		var ops []clientv3.Op
		for k := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%d/%d", i, k), "v"))
		}
		resp, err := client.Txn(t.Context()).Then(ops...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		rev = resp.Header.Revision
	}
	source.WaitApplied(rev)
	return source.Verify()
}

// Not one of many records is lost.
func TestManyRecordsVerify(t *testing.T) {
	if v := verifyManyRecords(t, heliotest.Binary(t)); v.Result != heliograph.VerifyEqual {
		t.Errorf("verification: %s: %s", v.Result, v.Why)
	}
}

// A build that loses one record in ten thousand: verification finds it. That the
// other tests do find nothing means something only because of this one.
func TestPlantedLossIsFound(t *testing.T) {
	if v := verifyManyRecords(t, heliotest.Tagged(t, "heliograph_drop")); v.Result != heliograph.VerifyUnequal {
		t.Errorf("verification: %s: %s", v.Result, v.Why)
	}
}

// A build that does not compare digests takes the mirror that row 2 refuses, and
// splices two histories. The test of row 2 would fail with it; verification finds
// what it has done.
func TestPlantedSpliceIsFound(t *testing.T) {
	t.Parallel()
	pki := heliotest.NewPKI(t)
	pki = pki.With(t, heliotest.Tagged(t, "heliograph_nodigest"))
	_, second, mirror, rev := splice(t, pki)
	mirror.Start()
	s := mirror.WaitStatus("following a history that is not its own", time.Minute, func(s heliograph.Status) bool { return s.AppliedRevision > rev })
	if s.Status == heliograph.Diverged {
		t.Fatalf("the defect is not planted: %s", s.Why)
	}
	second.WaitFollowing()
	if v := mirror.Verify(); v.Result != heliograph.VerifyUnequal {
		t.Errorf("verification: %+v", v)
	}
	mirror.WaitDiverged()
}
