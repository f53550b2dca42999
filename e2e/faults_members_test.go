package e2e_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/faulttest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// switching is an etcd of three members whose source node reaches each of them
// through a relay of its own.
type switching struct {
	t      *testing.T
	etcd   *etcdtest.Cluster
	relays []*faulttest.TCPRelay
	source *heliotest.Node
}

func newSwitching(t *testing.T, pki *heliotest.PKI) *switching {
	t.Helper()
	// Who has missed a thousand entries gets a snapshot from its leader, which
	// replaces all that it has.
	s := &switching{t: t, etcd: etcdtest.Start(t, etcdtest.Options{
		Members: 3, Args: []string{"--snapshot-count=500", "--snapshot-catchup-entries=500"},
	})}
	var endpoints []string
	for _, m := range s.etcd.Members() {
		u, err := url.Parse(m.Endpoint())
		if err != nil {
			t.Fatal(err)
		}
		r := faulttest.NewTCPRelay(t, u.Host)
		s.relays = append(s.relays, r)
		endpoints = append(endpoints, "http://"+r.Addr())
	}
	s.source = pki.Source("prod-us", endpoints)
	return s
}

// follows returns the member that the source node has connected to last.
func (s *switching) follows() int {
	s.t.Helper()
	last, at := -1, -1
	log := s.source.Log()
	for i, r := range s.relays {
		if n := strings.LastIndex(log, `msg="etcd connected" part=upstream cluster=prod-us peer=http://`+r.Addr()+" "); n > at {
			last, at = i, n
		}
	}
	if last < 0 {
		s.t.Fatal("the source node has never been connected")
	}
	return last
}

// lost returns how often a connection to the member has failed or ended.
func (s *switching) lost(member int) int {
	return strings.Count(s.source.Log(), `msg="etcd lost" part=upstream cluster=prod-us peer=http://`+s.relays[member].Addr()+" ")
}

func (s *switching) await(what string, ok func() bool) {
	s.t.Helper()
	s.source.WaitStatus(what, 2*time.Minute, func(heliograph.Status) bool { return ok() })
}

// client returns a client of some members.
func (s *switching) client(members ...int) *clientv3.Client {
	s.t.Helper()
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, s.etcd.Member(m).Endpoint())
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// write has a load write n revisions through members that are well, and returns
// etcd's revision.
func (s *switching) write(n int64, members ...int) int64 {
	s.t.Helper()
	client := s.client(members...)
	load := etcdtest.StartLoad(s.t, client, etcdtest.LoadOptions{Workers: 8, Deletes: true, Txns: true, Leases: true})
	s.await("written", func() bool { return load.Written() >= n })
	load.Stop()
	rev, err := etcdtest.Revision(s.t.Context(), client)
	if err != nil {
		s.t.Fatal(err)
	}
	return rev
}

// others returns the members but one.
func (s *switching) others(member int) []int {
	return slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == member })
}

// alone has the source node reach only one member, which was stopped while the
// others wrote n revisions, and which has no leader. It returns the last revision of
// those, and the function that ends it.
func (s *switching) alone(member int, n int64) (rev int64, end func()) {
	s.t.Helper()
	others := s.others(member)
	s.etcd.Member(member).Pause()
	rev = s.write(n, others...)
	s.source.WaitApplied(rev)
	for _, m := range others {
		s.relays[m].Refuse()
		s.etcd.Member(m).Pause()
	}
	s.etcd.Member(member).Resume()
	return rev, func() {
		s.t.Helper()
		for _, m := range others {
			s.etcd.Member(m).Resume()
		}
		s.etcd.WaitReady(s.t)
	}
}

// clock is one client of a node, which looks at the revision of every answer.
type clock struct {
	name        string
	client      *clientv3.Client
	reads, fine int
}

// read reads until ctx ends, linearizably and not, and returns an error as soon as a
// revision is below one from before.
func (c *clock) read(ctx context.Context) error {
	last := int64(0)
	for ; ctx.Err() == nil; c.reads++ {
		var opts []clientv3.OpOption
		if c.reads%2 == 0 {
			opts = append(opts, clientv3.WithSerializable())
		}
		callCtx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
		resp, err := c.client.Get(callCtx, "load/", append(opts, clientv3.WithPrefix(), clientv3.WithLimit(10))...)
		cancel()
		if err != nil {
			continue // a linearizable read while etcd cannot be asked
		}
		c.fine++
		if resp.Header.Revision < last {
			return fmt.Errorf("%s: a read at revision %d after one at %d", c.name, resp.Header.Revision, last)
		}
		last = resp.Header.Revision
		for _, kv := range resp.Kvs {
			if kv.ModRevision > last {
				return fmt.Errorf("%s: a read at revision %d shows a key of %d", c.name, last, kv.ModRevision)
			}
		}
	}
	return nil
}

// Row 12: the source node changes members of etcd, away from one that has fallen
// silent, and to one that is behind: a follower that was stopped while thousands of
// revisions were written, first with a leader and then alone. Neither the replicas'
// revision nor that of any answer ever steps back, and no revision is seen twice.
func TestRow12TimeTravelAfterSwitchingMembers(t *testing.T) {
	t.Parallel()
	const gap = 1500 // revisions
	pki := heliotest.NewPKI(t)
	s := newSwitching(t, pki)
	mirror := pki.Mirror("prod-eu", s.source, false)
	from := s.write(200, 0, 1, 2) + 1
	mirror.WaitApplied(from - 1)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	reading, stopReading := context.WithCancel(ctx)
	nodes := []*heliotest.Node{s.source, mirror}
	var g errgroup.Group
	t.Cleanup(func() { cancel(); g.Wait() })
	until := make(chan int64, len(nodes))
	var witnesses []*witness
	var clocks []*clock
	for _, n := range nodes {
		w, c := newWitness(from), &clock{name: n.Name(), client: n.Client()}
		witnesses, clocks = append(witnesses, w), append(clocks, c)
		g.Go(func() error { return c.read(reading) })
		g.Go(func() error {
			if _, err := w.follow(ctx, n.Client(), until, func() bool { return false }); err != nil {
				return fmt.Errorf("%s: %w", n.Name(), err)
			}
			return nil
		})
	}

	first := s.follows()
	t.Logf("following m%d, which falls silent to the source node alone", first)
	s.relays[first].Silence()
	mirror.WaitApplied(s.write(gap, s.others(first)...))
	if s.follows() == first {
		t.Fatal("no other member is followed")
	}
	s.relays[first].Heal()

	stale := s.follows()
	t.Logf("following m%d, which stops, and is gone back to while it is behind", stale)
	s.etcd.Member(stale).Pause()
	mirror.WaitApplied(s.write(gap, s.others(stale)...))
	for _, m := range s.others(stale) {
		s.relays[m].Refuse()
	}
	s.etcd.Member(stale).Resume()
	mirror.WaitApplied(s.write(gap, s.others(stale)...))
	if s.follows() != stale {
		t.Fatal("something else is followed than the one that can be reached")
	}

	t.Logf("following m%d, which stops, and is gone back to while it is behind and alone", stale)
	for _, r := range s.relays {
		r.Heal()
	}
	rev, end := s.alone(stale, gap)
	lost := s.lost(stale)
	s.await("refused by a member without a leader", func() bool { return s.lost(stale) > lost+1 })
	for _, n := range nodes {
		st := n.WaitStatus("in trouble", 2*time.Minute, func(st heliograph.Status) bool {
			return st.Status == heliograph.Degraded || st.Status == heliograph.Disconnected
		})
		if st.AppliedRevision < rev || st.Why == "" {
			t.Errorf("%s: at revision %d, below %d: %q", n.Name(), st.AppliedRevision, rev, st.Why)
		}
	}
	end()
	rev = s.write(gap, 0, 1, 2)
	heliotest.RequireEqual(t, s.etcd, rev, nodes...)
	if s.follows() != stale {
		t.Fatal("something else is followed than the one that can be reached")
	}

	stopReading()
	for range nodes {
		until <- rev
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	truth := newWitness(from)
	until <- rev
	if _, err := truth.follow(ctx, s.etcd.Client(t), until, func() bool { return false }); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		t.Logf("%s: %d revisions watched, %d of %d reads answered", n.Name(), len(witnesses[i].digests), clocks[i].fine, clocks[i].reads)
		for r := from; r <= rev; r++ {
			if witnesses[i].digests[r] != truth.digests[r] {
				t.Fatalf("%s: the events of revision %d differ from etcd's", n.Name(), r)
			}
		}
		if clocks[i].fine < 50 || len(witnesses[i].digests) < 4*gap {
			t.Errorf("%s: too little traffic to prove anything", n.Name())
		}
		if got := n.Snapshots(); got != 1 {
			t.Errorf("%s: %d snapshots, want one", n.Name(), got)
		}
	}
}

// A build that asks a member for the revision that it happens to have, instead of
// etcd's, takes the stale member's word for it.
func TestRow12PlantedBugIsFound(t *testing.T) {
	t.Parallel()
	binary := heliotest.Mutant(t, "upstream/etcd/connection.go", "CountOnly: true, Revision: at}", "CountOnly: true, Revision: at, Serializable: true}")
	s := newSwitching(t, heliotest.NewPKI(t).With(t, binary))
	s.source.WaitFollowing()
	_, end := s.alone(s.follows(), 1500)
	defer end()
	t.Log(s.source.WaitDiverged().Why)
}
