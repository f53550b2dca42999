package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

var crcTable = crc64.MakeTable(crc64.ECMA)

// witness checks a watch on all keys while it goes on, and remembers a digest of
// each revision's events.
type witness struct {
	last      int64 // the last revision that was shown
	told      int64 // by a bookmark: all up to it has been shown
	bookmarks int
	digests   map[int64]uint64
}

func newWitness(from int64) *witness {
	return &witness{last: from - 1, digests: make(map[int64]uint64)}
}

// take checks a response: revisions are shown in order, none is left out (every
// one changes some key), each comes whole and once, and a bookmark is never
// ahead of what was shown.
func (w *witness) take(resp clientv3.WatchResponse) error {
	if err := resp.Err(); err != nil {
		return fmt.Errorf("after revision %d: %w", w.last, err)
	}
	if resp.IsProgressNotify() {
		w.bookmarks++
		if resp.Header.Revision > w.last {
			return fmt.Errorf("bookmark at %d, though revisions have been shown up to %d only", resp.Header.Revision, w.last)
		}
		w.told = max(w.told, resp.Header.Revision)
		return nil
	}
	before := w.last
	for _, ev := range resp.Events {
		rev := ev.Kv.ModRevision
		if rev != w.last+1 && (rev != w.last || rev == before) || rev <= w.told {
			return fmt.Errorf("revision %d after %d (last of the response before: %d, bookmark: %d)", rev, w.last, before, w.told)
		}
		w.last = rev
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(ev)
		if err != nil {
			return err
		}
		w.digests[rev] = crc64.Update(w.digests[rev], crcTable, b)
	}
	return nil
}

// follow watches until a revision comes from the channel and has been shown. It
// asks for bookmarks all the time. Whenever leave says so, it ends the watch and
// begins another one at the next revision; it returns how often.
func (w *witness) follow(ctx context.Context, client *clientv3.Client, until <-chan int64, leave func() bool) (resumed int, err error) {
	ask := time.NewTicker(20 * time.Millisecond)
	defer ask.Stop()
	target := int64(0)
	for {
		watchCtx, cancel := context.WithCancel(ctx)
		events := client.Watch(watchCtx, "", clientv3.WithPrefix(), clientv3.WithRev(w.last+1), clientv3.WithProgressNotify())
		for left := false; !left && (target == 0 || w.last < target); {
			select {
			case target = <-until:
				until = nil
			case resp, ok := <-events:
				if !ok {
					cancel()
					return resumed, errors.New("the watch was closed")
				}
				if err := w.take(resp); err != nil {
					cancel()
					return resumed, err
				}
				left = leave()
			case <-ask.C:
				if err := client.RequestProgress(watchCtx); err != nil {
					cancel()
					return resumed, err
				}
			case <-ctx.Done():
				cancel()
				return resumed, fmt.Errorf("revision %d was shown last: %w", w.last, ctx.Err())
			}
		}
		cancel()
		if target > 0 && w.last >= target {
			return resumed, nil
		}
		resumed++
	}
}

// The guarantees of etcd's watch, on a mirror, with writers at full speed and
// compaction close behind: ordered, unique, atomic, reliable, resumable and
// bookmarkable. That the events are etcd's is checked against etcd's own watch.
func TestFault08And09And13WatchGuaranteesUnderLoad(t *testing.T) {
	const length, compactEvery, kept = 4 * time.Second, 200 * time.Millisecond, 2000
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	from := etcdtest.Fill(t, client, 2*kept) + 1
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	mirror.WaitFollowing()

	rng := rand.New(rand.NewPCG(seed(t), 2))
	stays := func() bool { return false }
	leaves := func() bool { return rng.IntN(30) == 0 } // used by one watcher only
	watchers := []*struct {
		name   string
		client *clientv3.Client
		leave  func() bool
		*witness
		resumed int
	}{
		{name: "etcd", client: etcd.Client(t), leave: stays, witness: newWitness(from)},
		{name: "mirror", client: mirror.Client(), leave: stays, witness: newWitness(from)},
		{name: "mirror, resuming", client: mirror.Client(), leave: leaves, witness: newWitness(from)},
	}
	ctx, cancel := context.WithTimeout(t.Context(), watchWait)
	defer cancel()
	var g errgroup.Group
	until := make(chan int64, len(watchers))
	for _, w := range watchers {
		g.Go(func() (err error) {
			if w.resumed, err = w.follow(ctx, w.client, until, w.leave); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			return nil
		})
	}
	load := fullLoad(t, client)
	tick := time.NewTicker(compactEvery)
	defer tick.Stop()
	compactions := 0
	for start := time.Now(); time.Since(start) < length; compactions++ {
		<-tick.C // the rhythm of the load, not a wait for something
		if rev := etcd.Revision(t) - kept; rev > 1 {
			if _, err := client.Compact(ctx, rev); err != nil {
				t.Fatal(err)
			}
		}
	}
	rev := stop(t, etcd, load)
	for range watchers {
		until <- rev
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, w := range watchers {
		t.Logf("%s: %d revisions, %d bookmarks, resumed %d times", w.name, len(w.digests), w.bookmarks, w.resumed)
		for r := from; r <= rev; r++ {
			if w.digests[r] != watchers[0].digests[r] {
				t.Fatalf("%s: the events of revision %d differ from etcd's", w.name, r)
			}
		}
	}
	if watchers[1].bookmarks == 0 || watchers[2].resumed < 5 || compactions < 5 {
		t.Errorf("%d bookmarks, %d times resumed, %d compactions: too few to prove anything", watchers[1].bookmarks, watchers[2].resumed, compactions)
	}
	heliotest.RequireEqual(t, etcd, rev, mirror)
	atTheFloor(t, mirror)
}

// atTheFloor resumes at the compaction revision, which works, and just below,
// which is refused with that revision.
func atTheFloor(t *testing.T, mirror *heliotest.Node) {
	t.Helper()
	s, err := mirror.Status()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), watchWait)
	defer cancel()
	floor := s.CompactRevision
	at := <-mirror.Client().Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(floor))
	if at.Err() != nil || len(at.Events) == 0 || at.Events[0].Kv.ModRevision < floor {
		t.Errorf("a watch from the compaction revision %d shows %+v, %v", floor, at.Header, at.Err())
	}
	if below := <-mirror.Client().Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(floor-1)); below.CompactRevision != floor {
		t.Errorf("a watch from below the compaction revision %d gets %d, %v", floor, below.CompactRevision, below.Err())
	}
}
