package etcd_test

import (
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
)

// story writes revisions 2 to n, with another value at revision differs.
func story(t *testing.T, client *clientv3.Client, from, n, differs int64) {
	t.Helper()
	for rev := from; rev <= n; rev++ {
		value := "value"
		if rev == differs {
			value = "other"
		}
		resp, err := client.Put(t.Context(), fmt.Sprintf("k%d", rev%50), fmt.Sprint(value, rev))
		if err != nil || resp.Header.Revision != rev {
			t.Fatalf("put: revision %d, %v; want %d", resp.Header.Revision, err, rev)
		}
	}
}

// FAULTS.md row 2: an etcd that was wiped and has grown past the replica. Only one
// revision of the last thousand differs, and not the last.
func TestRow02WipedAndGrownPast(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	story(t, client, 2, 800, 0)
	r.start()
	r.reaches(800)
	r.stop()
	kept := r.store.Proof()

	c.Wipe(t)
	c.Restart(t)
	story(t, client, 2, 900, 300)
	r.start()
	if err := r.diverged(); err.Rev != 300 || !strings.Contains(err.Why, "created anew or restored") {
		t.Errorf("got %v, want revision 300", err)
	}
	if r.store.Applied() != 800 || r.store.Proof().Tails[0] != kept.Tails[0] {
		t.Errorf("applied %d", r.store.Applied())
	}
}

// The same, and it has compacted everything that the replica has: the snapshot
// that would be the way on is of another history.
func TestRow02WipedGrownPastAndCompacted(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	story(t, client, 2, 100, 0)
	r.start()
	r.reaches(100)
	r.stop()

	c.Wipe(t)
	c.Restart(t)
	if _, err := client.Put(t.Context(), "never again", "x"); err != nil {
		t.Fatal(err)
	}
	story(t, client, 3, 200, 0)
	if _, err := client.Compact(t.Context(), 180, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	r.start()
	if err := r.diverged(); !strings.Contains(err.Why, "the upstream's snapshot holds other records") {
		t.Errorf("got %v", err)
	}
	if r.store.Applied() != 100 {
		t.Errorf("applied %d", r.store.Applied())
	}
}

// FAULTS.md row 1: an etcd that was restored from an older backup, every way in
// which etcdutl can. Nothing is applied.
func TestRow01RestoredFromAnOlderBackup(t *testing.T) {
	for _, tt := range []struct {
		name  string
		args  []string
		grown bool // past the replica
		why   string
	}{
		{name: "same token", why: "etcd is at revision 60, the replica at 100"},
		{name: "same token, grown past", grown: true, why: "etcd does not hold what the replica holds"},
		{name: "new token", args: []string{"--initial-cluster-token=other"}, why: "the replica comes from the etcd cluster"},
		{name: "new token, grown past", args: []string{"--initial-cluster-token=other"}, grown: true, why: "the replica comes from the etcd cluster"},
		{name: "bumped", args: []string{"--bump-revision=1000", "--mark-compacted"}, why: "raised to 1060"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := etcdtest.Start(t, etcdtest.Options{})
			client := c.Client(t)
			r := newRig(t, c)
			story(t, client, 2, 60, 0)
			backup := c.Save(t)
			story(t, client, 61, 100, 0)
			r.start()
			r.reaches(100)
			r.stop()
			c.Restore(t, backup, tt.args...)
			if tt.grown {
				story(t, client, 61, 150, 61)
			}
			r.start()
			err := r.diverged()
			if !strings.Contains(err.Why, tt.why) || strings.ContainsAny(err.Why, "\n") || !strings.Contains(err.Why, "resync") {
				t.Errorf("got %v, want %q", err, tt.why)
			}
			if r.store.Applied() != 100 {
				t.Errorf("applied %d", r.store.Applied())
			}
			// What a resync does: the other history is followed, exactly.
			if err := r.store.Reset(); err != nil {
				t.Fatal(err)
			}
			r.start()
			if _, err := client.Put(t.Context(), "after", "restore"); err != nil {
				t.Fatal(err)
			}
			r.exact(c)
			if r.store.Origin() == (heliograph.Origin{}) {
				t.Error("no origin")
			}
		})
	}
}

// A healthy etcd is compared at every connection, compacted or not, and large
// revisions too; nothing is found.
func TestReconnectingCompares(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	rev := etcdtest.Fill(t, client, 1500)
	r.start()
	r.reaches(rev)
	for i, keep := range []int64{0, 700, 1, 0} {
		r.stop()
		if keep > 0 || i == 3 {
			if _, err := client.Compact(t.Context(), rev-keep); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := client.Put(t.Context(), "large", strings.Repeat("x", 1<<20)); err != nil {
			t.Fatal(err)
		}
		rev = etcdtest.Fill(t, client, 50)
		r.start()
		r.exact(c)
	}
	if v := r.heard.view(); v.snapshots != 1 {
		t.Errorf("%d snapshots, want one", v.snapshots)
	}
}

func TestHashKVOfTheMember(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	r := newRig(t, c)
	r.start()
	if _, err := r.up.HashKV(t.Context()); err == nil {
		t.Log("connected at once")
	}
	rev := etcdtest.Fill(t, client, 100)
	r.reaches(rev)
	want, _ := c.HashKV(t, rev)
	got, err := r.up.HashKV(t.Context())
	if err != nil || got.Hash != want || got.Revision != rev || got.CompactRevision != 0 || got.Endpoint != c.Endpoints()[0] {
		t.Errorf("got %+v, %v, want %08x at %d", got, err, want, rev)
	}
	// A hash that etcd remembers of a compaction at 0 is not taken for the newest.
	if _, err := client.Compact(t.Context(), 0, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if again, err := r.up.HashKV(t.Context()); err != nil || again != got {
		t.Errorf("after a compaction at 0: %+v, %v, want %+v", again, err, got)
	}
	r.stop()
	if _, err := r.up.HashKV(t.Context()); err == nil {
		t.Error("a hash without a connection")
	}
}
