package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/faulttest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// put writes n revisions of keys with a prefix and returns etcd's revision.
func put(t *testing.T, client *clientv3.Client, prefix string, n int) int64 {
	t.Helper()
	rev := int64(0)
	for i := range n {
		resp, err := client.Put(t.Context(), fmt.Sprint(prefix, i), fmt.Sprint(prefix, "value", i))
		if err != nil {
			t.Fatal(err)
		}
		rev = resp.Header.Revision
	}
	return rev
}

// requireDiverged fails unless the node is diverged for the reason, says so in one
// sentence, and has applied rev and no more.
func requireDiverged(t *testing.T, n *heliotest.Node, rev int64, why string) {
	t.Helper()
	s := n.WaitDiverged()
	t.Logf("%s: %s", n.Name(), s.Why)
	if !strings.Contains(s.Why, why) || !strings.Contains(s.Why, "resync") || strings.Contains(s.Why, "\n") {
		t.Errorf("%s says %q, want one sentence with %q and what to do", n.Name(), s.Why, why)
	}
	if s.AppliedRevision != rev {
		t.Errorf("%s has applied %d, want %d: something was applied after all", n.Name(), s.AppliedRevision, rev)
	}
}

// Row 1 of FAULTS.md: etcd is restored from an older backup. Source node and
// mirror stop, each with one sentence, and nothing is applied; a resync of each,
// asked for or by itself, follows etcd as it is now. Watchers of the mirror get an
// error and never the other history.
func TestRow01RestoredFromABackup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		why  string
		auto bool
	}{
		{"same token", nil, "etcd was created anew or restored", false},
		{"new token", []string{"--initial-cluster-token=other"}, "from the etcd cluster", false},
		{"bumped", []string{"--bump-revision=5000", "--mark-compacted"}, "restored from a backup and its revisions raised", false},
		{"same token, resync by itself", nil, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			etcd := etcdtest.Start(t, etcdtest.Options{})
			client := etcd.Client(t)
			pki := heliotest.NewPKI(t)
			var flags []string
			if tt.auto {
				flags = []string{"--on-divergence", "resync"}
			}
			source := pki.Source("prod-us", etcd.Endpoints(), flags...)
			mirror := pki.Mirror("prod-eu", source, false, flags...)
			put(t, client, "a", 100)
			backup := etcd.Save(t)
			rev := put(t, client, "lost", 100)
			mirror.WaitApplied(rev)
			watch := mirror.Client().Watch(t.Context(), "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
			if resp := <-watch; resp.Err() != nil {
				t.Fatal(resp.Err())
			}

			source.WaitStatus("durable", time.Minute, func(s heliograph.Status) bool { return s.DurableRevision >= rev })
			source.Kill()
			etcd.Restore(t, backup, tt.args...)
			now := put(t, client, "other", 150)
			source.Start()
			if !tt.auto {
				requireDiverged(t, source, rev, tt.why)
				if s, err := mirror.Status(); err != nil || s.AppliedRevision != rev {
					t.Errorf("mirror at %d, %v", s.AppliedRevision, err)
				}
				source.Resync()
				source.WaitApplied(now)
				requireDiverged(t, mirror, rev, "")
				mirror.Resync()
			}
			mirror.WaitApplied(now)
			heliotest.RequireEqual(t, etcd, put(t, client, "after", 10), source, mirror)
			requireCompacted(t, watch, "other")
		})
	}
}

// requireCompacted fails unless the watch ends as after a compaction, without an
// event on a key with the prefix.
func requireCompacted(t *testing.T, watch clientv3.WatchChan, never string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case resp, ok := <-watch:
			for _, ev := range resp.Events {
				if strings.HasPrefix(string(ev.Kv.Key), never) {
					t.Errorf("the watch jumped to %s at revision %d", ev.Kv.Key, ev.Kv.ModRevision)
				}
			}
			if err := resp.Err(); err != nil {
				if !errors.Is(err, rpctypes.ErrCompacted) {
					t.Errorf("the watch ended with %v", err)
				}
				return
			}
			if !ok {
				t.Error("the watch ended without an error")
				return
			}
		case <-timeout:
			t.Fatal("the watch goes on")
		}
	}
}

// splice makes two histories with one identity: a mirror follows the first, and
// beside the etcd, which was wiped and has grown past the mirror, there is a source
// node that knows only the second. It returns that source, the mirror, which is
// stopped, and the mirror's revision.
func splice(t *testing.T, pki *heliotest.PKI) (etcd *etcdtest.Cluster, second, mirror *heliotest.Node, rev int64) {
	t.Helper()
	etcd = etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	first := pki.NewSource("prod-us", etcd.Endpoints())
	second = pki.NewSource("prod-us", etcd.Endpoints())
	mirror = pki.NewMirror("prod-eu", &heliotest.Node{Cluster: "prod-us", Listen: first.Listen + "," + second.Listen}, false)
	first.Start()
	rev = put(t, client, "first", 2000)
	mirror.Start()
	mirror.WaitApplied(rev)
	mirror.WaitStatus("durable", time.Minute, func(s heliograph.Status) bool { return s.DurableRevision >= rev })
	mirror.Kill()
	first.Kill()
	etcd.Wipe(t)
	etcd.Restart(t)
	second.Start()
	second.WaitApplied(put(t, client, "second", 2500))
	return etcd, second, mirror, rev
}

// Row 2: the source was created anew and has grown past the mirror's position. It
// is refused before the first record, and told where the histories part.
func TestRow02RecreatedAndGrownPast(t *testing.T) {
	t.Parallel()
	etcd, second, mirror, rev := splice(t, heliotest.NewPKI(t))
	mirror.Start()
	requireDiverged(t, mirror, rev, "the mirror holds other records in revisions 2 to 1023 than node")
	if n := mirror.Metric("heliograph_link_applied_revisions_total"); n != 0 {
		t.Errorf("%v revisions were applied", n)
	}
	if n := second.MetricWith("heliograph_source_refusals_total", `code="diverged"`); n != 1 {
		t.Errorf("%v refusals, want one", n)
	}
	mirror.Resync()
	heliotest.RequireEqual(t, etcd, etcd.Revision(t), second, mirror)
}

// Row 3: a stray write into a mirror's file. It says so once, and does not try
// again and again.
func TestRow03StrayWriteIntoAMirrorsFile(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	put(t, client, "a", 50)
	if _, err := client.Put(t.Context(), "b", marker); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "c", 50)
	mirror.WaitApplied(rev)
	if code, _ := mirror.Stop(10 * time.Second); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	flip(t, mirror, marker)
	put(t, client, "d", 10)
	mirror.Start()
	requireDiverged(t, mirror, rev, "it was written to or is damaged")
	if n := strings.Count(mirror.Log(), "diverged: following has stopped"); n != 1 {
		t.Errorf("it said so %d times", n)
	}
	if n := strings.Count(mirror.Log(), "msg=following part=upstream"); n != 1 {
		t.Errorf("it followed %d times, want once: before the stray write", n)
	}
	mirror.Resync()
	heliotest.RequireEqual(t, etcd, etcd.Revision(t), source, mirror)
}

// marker is a value that is found in a file; flip changes a letter of it in every
// place where it stands.
var marker = strings.Repeat("MARKER-of-a-value-that-is-found-in-the-file-", 40)

func flip(t *testing.T, n *heliotest.Node, what string) {
	t.Helper()
	path := filepath.Join(n.DataDir, "default.db")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for at := 0; ; found++ {
		i := bytes.Index(content[at:], []byte(what))
		if i < 0 {
			break
		}
		at += i + len(what)
		if _, err := f.WriteAt([]byte{what[7] ^ 1}, int64(at-len(what)+7)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil || found == 0 {
		t.Fatalf("%d places, %v", found, err)
	}
}

// Row 4: the history was compacted while the mirror was away. It gets a snapshot by
// itself; a watcher on it that would have missed something is told that it has been
// compacted.
func TestRow04CompactedWhileAway(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitApplied(put(t, client, "a", 100))
	watch := mirror.Client().Watch(t.Context(), "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if resp := <-watch; resp.Err() != nil {
		t.Fatal(resp.Err())
	}
	source.Kill()
	put(t, client, "missed", 100)
	if _, err := client.Delete(t.Context(), "a", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "b", 100)
	compact(t, etcd, rev)
	source.Start()
	rev = put(t, client, "c", 10)
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	if n := mirror.Snapshots(); n != 2 {
		t.Errorf("%d snapshots, want two", n)
	}
	requireCompacted(t, watch, "c")
}

// Row 6: what was deleted in a gap is gone after a resync: a snapshot replaces and
// does not merge.
func TestRow06DeletedBeforeAResync(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitApplied(put(t, client, "a", 100))
	mirror.Kill()
	if _, err := client.Delete(t.Context(), "a5", clientv3.WithRange("a6")); err != nil {
		t.Fatal(err)
	}
	rev := put(t, client, "b", 100)
	compact(t, etcd, rev-10)
	mirror.Start()
	mirror.WaitApplied(rev)
	mirror.Resync()
	heliotest.RequireEqual(t, etcd, rev, source, mirror)
	for _, c := range []*clientv3.Client{client, mirror.Client()} {
		resp, err := c.Get(t.Context(), "a", clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil || len(resp.Kvs) != 89 {
			t.Errorf("%d keys left, %v; want 89", len(resp.Kvs), err)
		}
	}
}

// Row 30: a reset in the middle of a chain reaches its end, which goes on where it
// was if the history is the same; and a cycle is refused.
func TestRow30TroubleInTheMiddleOfAChain(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	relay := pki.Mirror("prod-eu", source, true)
	leaf := pki.Mirror("prod-asia", relay, false)
	leaf.WaitApplied(put(t, client, "a", 1500))
	relay.Resync()
	heliotest.RequireEqual(t, etcd, put(t, client, "b", 100), source, relay, leaf)
	if a, b := relay.Snapshots(), leaf.Snapshots(); a != 2 || b != 1 {
		t.Errorf("%d and %d snapshots, want two and one: the leaf holds what the relay holds", a, b)
	}
	if n := strings.Count(leaf.Log(), "refused by the source: reset"); n == 0 {
		t.Error("the leaf was not told of the reset")
	}
	s := leaf.Verify()
	if s.Result != heliograph.VerifyEqual {
		t.Errorf("verification: %+v", s)
	}

	// A from B from A: B stands below A, and A is told to follow it.
	a := pki.Mirror("prod-eu", relay, true)
	b := pki.Mirror("prod-eu", a, true)
	b.WaitApplied(etcd.Revision(t))
	a.Kill()
	again := pki.NewMirror("prod-eu", b, true, "--data-dir", a.DataDir, "--listen", a.Listen)
	again.Start()
	again.WaitStatus("in a cycle", time.Minute, func(s heliograph.Status) bool {
		return s.Status == heliograph.Disconnected && (strings.Contains(s.Why, "cycle") || strings.Contains(s.Why, "follows this node"))
	})
}

// Two source nodes beside one etcd are interchangeable: a mirror moves between them
// without a new snapshot, and each time its history is compared.
func TestTwoSourceNodesAreInterchangeable(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	put(t, client, "before", 1500)
	one := pki.Source("prod-us", etcd.Endpoints())
	one.WaitApplied(put(t, client, "between", 1500))
	rev := put(t, client, "more", 200)
	compact(t, etcd, rev-100)
	// It begins later, and so holds less of the history.
	two := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.NewMirror("prod-eu", &heliotest.Node{Cluster: "prod-us", Listen: one.Listen + "," + two.Listen}, false)
	mirror.Start()
	two.WaitFollowing()
	mirror.WaitApplied(rev)
	for i := range 4 {
		from, to := one, two
		if i%2 == 1 {
			from, to = two, one
		}
		from.Kill()
		rev = put(t, client, fmt.Sprint("round", i, "-"), 50)
		heliotest.RequireEqual(t, etcd, rev, to, mirror)
		if n := to.Metric("heliograph_source_histories_total"); n < 1 {
			t.Errorf("round %d: %v histories compared", i, n)
		}
		if unproven := to.MetricWith("heliograph_source_histories_total", `result="unproven"`); unproven != 0 {
			t.Errorf("round %d: %v histories could not be compared", i, unproven)
		}
		from.Start()
		from.WaitFollowing()
	}
	if n := mirror.Snapshots(); n != 1 {
		t.Errorf("%d snapshots, want one", n)
	}
	if !slices.Contains([]heliograph.State{heliograph.Following, heliograph.CatchingUp}, mirror.WaitFollowing().Status) {
		t.Error("the mirror does not follow")
	}
}

// Of two source nodes one loses its etcd, and the other does not: the mirror goes over
// to that, by itself or when somebody asks, and is not promoted meanwhile. Where both
// have lost it, nothing answers.
func TestMirrorLeavesASourceThatLostItsEtcd(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	rev := put(t, client, "before", 50)
	var relays []*faulttest.TCPRelay
	var sources []*heliotest.Node
	for range 2 {
		relay := faulttest.NewTCPRelay(t, strings.TrimPrefix(etcd.Endpoints()[0], "http://"))
		source := pki.Source("prod-us", []string{"http://" + relay.Addr()})
		source.WaitApplied(rev)
		relays, sources = append(relays, relay), append(sources, source)
	}
	mirror := pki.Mirror("prod-eu", &heliotest.Node{Cluster: "prod-us", Listen: sources[0].Listen + "," + sources[1].Listen}, false)
	mirror.WaitApplied(rev)

	t.Log("one loses it, and nobody asks")
	relays[0].Silence()
	rev = put(t, client, "silence", 50)
	heliotest.RequireEqual(t, etcd, rev, sources[1], mirror)

	t.Log("the other loses it, and somebody wants to promote")
	relays[0].Heal()
	sources[0].WaitApplied(rev)
	relays[1].Refuse()
	if _, err := mirror.TryPromote(); err == nil || !strings.Contains(err.Error(), "the etcd that it mirrors answers") {
		t.Fatalf("promoted beside an etcd that lives: %v", err)
	}
	rev = put(t, client, "asked", 50)
	heliotest.RequireEqual(t, etcd, rev, sources[0], mirror)
	if n := mirror.Snapshots(); n != 1 {
		t.Errorf("%d snapshots, want one", n)
	}

	t.Log("both have lost it")
	relays[0].Silence()
	if p := mirror.Plan(); p.OriginAnswers || !p.OriginAsked || strings.Count(p.OriginWhy, "no answer from etcd") != 2 {
		t.Errorf("plan %+v, want that nothing answers at either", p)
	}
}
