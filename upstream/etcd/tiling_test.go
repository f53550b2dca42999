package etcd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"

	"github.com/heliograph/heliograph"
)

// server is etcd's side of a watch stream as far as a tiling can tell: watchers
// that are up to date get each revision when it is made, those that are behind
// get up to 1,000 in a pass.
type server struct {
	head      int64
	compacted int64
	events    map[int64]int // how many a revision has; 1 unless given
	watchers  map[int64]*watcher
	sent      []*pb.WatchResponse
}

type watcher struct {
	next     int64 // the revision that it gets next
	synced   bool
	fragment bool
}

func (s *server) do(r request) {
	if !r.create {
		delete(s.watchers, r.id)
		s.sent = append(s.sent, &pb.WatchResponse{WatchId: r.id, Canceled: true, Header: s.header(s.head)})
		return
	}
	s.watchers[r.id] = &watcher{next: r.start, synced: r.start > s.head, fragment: r.fragment}
	s.sent = append(s.sent, &pb.WatchResponse{WatchId: r.id, Created: true, Header: s.header(s.head)})
}

func (s *server) header(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: rev} }

// write makes a revision.
func (s *server) write() {
	s.head++
	for _, id := range s.ids() {
		if w := s.watchers[id]; w.synced && w.next <= s.head {
			w.next = s.head + 1
			s.send(id, s.head, s.head, s.head)
		}
	}
}

// pass serves the watchers that are behind.
func (s *server) pass() {
	for _, id := range s.ids() {
		w := s.watchers[id]
		if w.synced {
			continue
		}
		if w.next < s.compacted {
			delete(s.watchers, id)
			s.sent = append(s.sent, &pb.WatchResponse{WatchId: id, Canceled: true, CompactRevision: s.compacted, Header: s.header(0)})
			continue
		}
		last := min(w.next+passRevisions-1, s.head)
		s.send(id, w.next, last, s.head)
		w.next = last + 1
		w.synced = last == s.head
	}
}

// loseTouch makes an up to date watcher one that is behind, as a full channel does.
func (s *server) loseTouch(id int64) {
	if w := s.watchers[id]; w != nil && w.next <= s.head+1 {
		w.synced = false
	}
}

func (s *server) send(id, from, to, header int64) {
	var events []*mvccpb.Event
	for rev := from; rev <= to; rev++ {
		if rev < 2 {
			continue // etcd's first revision has no event
		}
		for i := range max(s.events[rev], 1) {
			events = append(events, event(rev, i))
		}
	}
	// Cut anywhere, also within a revision.
	for s.watchers[id].fragment && len(events) > 3 {
		s.sent = append(s.sent, &pb.WatchResponse{WatchId: id, Header: s.header(header), Events: events[:3], Fragment: true})
		events = events[3:]
	}
	if len(events) > 0 {
		s.sent = append(s.sent, &pb.WatchResponse{WatchId: id, Header: s.header(header), Events: events})
	}
}

func (s *server) ids() []int64 {
	var ids []int64
	for id := range s.watchers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func event(rev int64, i int) *mvccpb.Event {
	return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: fmt.Appendf(nil, "%d/%d", rev, i), ModRevision: rev}}
}

// Whatever the order of writes, passes, responses and losses of touch: every
// revision comes once, whole and in order, and after the last write the tiling
// arrives at the head.
func TestTilingDeliversEveryRevisionOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.Int64Range(1, 3000).Draw(t, "start")
		s := &server{
			head:     start + rapid.Int64Range(0, 20_000).Draw(t, "behind"),
			events:   make(map[int64]int),
			watchers: make(map[int64]*watcher),
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range 200 {
			s.events[start+rng.Int64N(20_000)] = 1 + rng.IntN(20)
		}
		budget := rapid.Int64Range(eventOverhead, 64<<20).Draw(t, "budget")
		tiles := newTiling(start, s.head, budget, rapid.Bool().Draw(t, "big"))
		next := max(start, 2)
		step := func(deliver int) {
			for _, r := range tiles.plan() {
				s.do(r)
			}
			if tiles.limit > maxTiles || len(tiles.tiles) > maxTiles+1 {
				t.Fatalf("%d tiles, limit %d", len(tiles.tiles), tiles.limit)
			}
			if !tiles.ready() {
				tiles.shrink()
			}
			for range deliver {
				if len(s.sent) == 0 || tiles.ready() && tiles.held() >= budget {
					break
				}
				resp := s.sent[0]
				s.sent = s.sent[1:]
				if err := tiles.receive(resp); err != nil {
					t.Fatalf("receive: %v", err)
				}
			}
			for range rng.IntN(2000) {
				got := tiles.take()
				if got == nil {
					break
				}
				if got[0].Kv.ModRevision != next || len(got) != max(s.events[next], 1) {
					t.Fatalf("took revision %d with %d events: want %d with %d",
						got[0].Kv.ModRevision, len(got), next, max(s.events[next], 1))
				}
				next++
			}
			if got := tiles.next(); got < next && next > start+1 {
				t.Fatalf("next is %d after %d was taken", got, next-1)
			}
		}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch rng.IntN(5) {
			case 0, 1:
				for range rng.IntN(300) {
					s.write()
				}
			case 2, 3:
				s.pass()
			case 4:
				if ids := s.ids(); len(ids) > 0 {
					s.loseTouch(ids[rng.IntN(len(ids))])
				}
			}
			step(rng.IntN(50))
		}
		for i := 0; next <= s.head; i++ {
			if i > 100_000 {
				t.Fatalf("stuck at %d of %d: %d tiles, limit %d", next, s.head, len(tiles.tiles), tiles.limit)
			}
			s.pass()
			step(1000)
		}
		step(1000)
		if n := len(s.watchers); n > maxTiles+1 {
			t.Errorf("%d watchers are left", n)
		}
	})
}

func TestTilingBecomesLive(t *testing.T) {
	s := &server{head: 50_000, watchers: make(map[int64]*watcher)}
	tiles := newTiling(1, s.head, 64<<20, false)
	most := 0
	for i := 0; !tiles.live() || tiles.next() <= s.head; i++ {
		if i == 1_000 {
			t.Fatal("not live")
		}
		for _, r := range tiles.plan() {
			s.do(r)
		}
		most = max(most, len(s.watchers))
		s.pass()
		for len(s.sent) > 0 {
			if err := tiles.receive(s.sent[0]); err != nil {
				t.Fatal(err)
			}
			s.sent = s.sent[1:]
		}
		for tiles.take() != nil {
		}
	}
	if most < 32 {
		t.Errorf("at most %d watchers at a time: small revisions make for many", most)
	}
	if got := len(tiles.tiles); got > 3 {
		t.Errorf("%d tiles while nothing is behind", got)
	}
}

// The live tile is planned with what is known of the head, which may have moved.
func TestTilingMovesALiveTileThatIsTooLate(t *testing.T) {
	tiles := newTiling(100, 100, 64<<20, false)
	created := tiles.plan()
	live := created[len(created)-1]
	if !tiles.live() || live.start <= 100+firstMargin {
		t.Fatalf("planned %+v", created)
	}
	late := &pb.WatchResponse{WatchId: live.id, Created: true, Header: &pb.ResponseHeader{Revision: live.start}}
	if err := tiles.receive(late); err != nil {
		t.Fatal(err)
	}
	again := tiles.plan()
	if again[0].create || again[0].id != live.id {
		t.Errorf("planned %+v: want the late watcher cancelled first", again)
	}
	if last := again[len(again)-1]; tiles.live() && last.start <= live.start+firstMargin {
		t.Errorf("the next live tile begins at %d: too close to %d", last.start, live.start)
	}
}

func TestTilingRefuses(t *testing.T) {
	header := &pb.ResponseHeader{Revision: 200}
	for _, test := range []struct {
		name string
		resp []*pb.WatchResponse
		want string
	}{
		{"a gap", []*pb.WatchResponse{{Events: []*mvccpb.Event{event(100, 0), event(102, 0)}}}, "revision 102 where 101 was due"},
		{"a gap between responses", []*pb.WatchResponse{
			{Events: []*mvccpb.Event{event(100, 0)}}, {Events: []*mvccpb.Event{event(102, 0)}},
		}, "revision 102 where 101 was due"},
		{"a gap at the beginning", []*pb.WatchResponse{{Events: []*mvccpb.Event{event(102, 0)}}}, "revision 102 where 100 was due"},
		{"a gap at the end", []*pb.WatchResponse{{Events: []*mvccpb.Event{event(100, 0), event(2000, 0)}}}, "revision 2000 where 101 was due"},
		{"a revision that ended", []*pb.WatchResponse{
			{Events: []*mvccpb.Event{event(100, 0)}}, {Events: []*mvccpb.Event{event(100, 1)}},
		}, "revision 100 where 101 was due"},
		{"going back", []*pb.WatchResponse{{Events: []*mvccpb.Event{event(100, 0), event(101, 0), event(100, 0)}}}, "revision 100 where 102 was due"},
		{"no key", []*pb.WatchResponse{{Events: []*mvccpb.Event{{}}}}, "without a key"},
		{"compacted", []*pb.WatchResponse{{Canceled: true, CompactRevision: 150}}, "compacted"},
		{"cancelled", []*pb.WatchResponse{{Canceled: true, CancelReason: "etcdserver: permission denied"}}, "permission denied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tiles := newTiling(100, 200, 64<<20, false)
			first := tiles.plan()[0]
			var err error
			for _, resp := range test.resp {
				resp.WatchId, resp.Header = first.id, header
				if err = tiles.receive(resp); err != nil {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v: want %q", err, test.want)
			}
			if compacted := errors.Is(err, heliograph.ErrCompacted); compacted != (test.name == "compacted") {
				t.Errorf("compacted: %v", compacted)
			}
		})
	}
}

func TestTilingCutsFragmentsOfBigEventsOnly(t *testing.T) {
	for _, test := range []struct {
		valueBytes int
		want       bool
	}{{100, false}, {bigEvent, true}} {
		tiles := newTiling(100, 100_000, 64<<20, false)
		first := tiles.plan()
		var events []*mvccpb.Event
		for rev := first[0].start; rev < first[0].start+passRevisions; rev++ {
			ev := event(rev, 0)
			ev.Kv.Value = make([]byte, test.valueBytes)
			events = append(events, ev)
		}
		if err := tiles.receive(&pb.WatchResponse{WatchId: first[0].id, Events: events, Header: &pb.ResponseHeader{}}); err != nil {
			t.Fatal(err)
		}
		next := tiles.plan()
		if next[0].create || next[0].id != first[0].id {
			t.Fatalf("planned %+v: want the tile that is done cancelled", next)
		}
		if got := next[len(next)-1]; got.fragment != test.want {
			t.Errorf("value of %d bytes: fragment %v", test.valueBytes, got.fragment)
		}
	}
}
