package session_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
)

var origin = heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 0xabc}

// node at revision 100, complete above 40, below the source node "top".
func node() session.Node {
	return session.Node{
		Cluster: "relay-eu", Database: "default", NodeID: "self-7", Version: 1,
		Lineage: heliograph.Lineage{Origin: origin}, MaxForks: 5, Applied: 100, Floor: 40,
		Head: 100, Fresh: true, Path: []string{"top"}, MaxPath: 16,
		MaxMirrors: 4, MaxFromAddress: 4, MaxSnapshots: 2,
	}
}

func hello() session.Hello {
	return session.Hello{
		Cluster: "relay-eu", Database: "default", LastApplied: 90, Version: 1,
		NodeID: "there", Origin: origin.String(),
	}
}

func peer(role heliograph.Role) session.Peer {
	return session.Peer{Identity: heliograph.Identity{Domain: "d", Cluster: "prod-eu", Role: role, Name: "m1"}}
}

func TestDecide(t *testing.T) {
	type h = session.Hello
	type p = session.Peer
	type n = session.Node
	refuse := func(c heliograph.Code) session.Decision { return session.Decision{Code: c} }
	from := func(rev int64) session.Decision { return session.Decision{From: rev} }
	snapshot := session.Decision{Snapshot: true}
	// The mirror's history may have left this one.
	unknown := session.Decision{Code: heliograph.CodeDiverged, Origin: origin.String()}
	tests := []struct {
		name   string
		change func(*h, *p, *n)
		want   session.Decision
	}{
		{"behind", func(*h, *p, *n) {}, from(91)},
		{"relay", func(_ *h, p *p, _ *n) { *p = peer(heliograph.RoleRelay) }, from(91)},
		{"up to date", func(h *h, _ *p, _ *n) { h.LastApplied = 100 }, from(101)},
		{"at the floor", func(h *h, _ *p, _ *n) { h.LastApplied = 40 }, from(41)},
		{"below the floor", func(h *h, _ *p, _ *n) { h.LastApplied = 39 }, snapshot},
		{"never compacted", func(h *h, _ *p, n *n) { h.LastApplied, n.Floor = 1, 0 }, from(2)},
		{"fresh", func(h *h, _ *p, _ *n) { h.LastApplied, h.Origin = 0, "" }, snapshot},
		{"origin and node not said", func(h *h, _ *p, _ *n) { h.Origin, h.NodeID = "", "" }, from(91)},
		{"allowed by name", func(_ *h, _ *p, n *n) { n.Allow = []string{"m0", "m1"} }, from(91)},

		{"asks", func(h *h, _ *p, _ *n) { h.Asks = true }, from(91)},
		{"asks from below the floor", func(h *h, _ *p, _ *n) { h.Asks, h.LastApplied = true, 39 }, from(40)},
		{"asks from ahead", func(h *h, _ *p, _ *n) { h.Asks, h.LastApplied = true, 200 }, from(201)},
		{"asks of another origin", func(h *h, _ *p, _ *n) { h.Asks, h.Origin = true, "relay-eu/default@77" }, unknown},
		{"asks where nobody may", func(h *h, p *p, _ *n) { h.Asks = true; *p = peer(heliograph.RoleSource) }, refuse(heliograph.CodeObserverOnly)},
		{"asks where there is no room", func(h *h, _ *p, n *n) { h.Asks = true; n.Mirrors = 4 }, refuse(heliograph.CodeOverloaded)},

		{"no identity", func(_ *h, p *p, _ *n) { p.Err = errors.New("two URIs") }, refuse(heliograph.CodeNotAuthorized)},
		{"role source", func(_ *h, p *p, _ *n) { *p = peer(heliograph.RoleSource) }, refuse(heliograph.CodeObserverOnly)},
		{"role operator", func(_ *h, p *p, _ *n) { *p = peer(heliograph.RoleOperator) }, refuse(heliograph.CodeObserverOnly)},
		{"no role", func(_ *h, p *p, _ *n) { *p = session.Peer{} }, refuse(heliograph.CodeObserverOnly)},
		{"name not allowed", func(_ *h, _ *p, n *n) { n.Allow = []string{"m0"} }, refuse(heliograph.CodeNotAuthorized)},
		{"version", func(h *h, _ *p, _ *n) { h.Version = 2 }, refuse(heliograph.CodeBadVersion)},
		{"version 0", func(h *h, _ *p, _ *n) { h.Version = 0 }, refuse(heliograph.CodeBadVersion)},
		{"cluster", func(h *h, _ *p, _ *n) { h.Cluster = "prod-us" }, refuse(heliograph.CodeClusterMismatch)},
		{"database", func(h *h, _ *p, _ *n) { h.Database = "other" }, refuse(heliograph.CodeUnknownDatabase)},
		{"itself", func(h *h, _ *p, _ *n) { h.NodeID = "self-7" }, refuse(heliograph.CodeSelfMirror)},
		{"cycle", func(h *h, _ *p, _ *n) { h.NodeID = "top" }, refuse(heliograph.CodeCycle)},
		{"chain too long", func(_ *h, _ *p, n *n) { n.Path = make([]string, 16) }, refuse(heliograph.CodeCycle)},
		{"longest chain", func(_ *h, _ *p, n *n) { n.Path = make([]string, 15) }, from(91)},
		{"no data", func(_ *h, _ *p, n *n) { n.Applied, n.Lineage = 0, heliograph.Lineage{} }, refuse(heliograph.CodeNotReady)},
		{"other origin", func(h *h, _ *p, _ *n) { h.Origin = "prod-us/default@abd" }, unknown},
		{"other origin, fresh", func(h *h, _ *p, _ *n) { h.LastApplied, h.Origin = 0, "x" }, unknown},
		{"ahead of the origin", func(h *h, _ *p, _ *n) { h.LastApplied = 101 }, refuse(heliograph.CodeDiverged)},
		{"ahead of the node only", func(h *h, _ *p, n *n) { h.LastApplied, n.Head = 101, 101 }, refuse(heliograph.CodeNotReady)},
		{"ahead, origin not heard", func(h *h, _ *p, n *n) { h.LastApplied, n.Fresh = 101, false }, refuse(heliograph.CodeNotReady)},
		{"too many mirrors", func(_ *h, _ *p, n *n) { n.Mirrors = 4 }, refuse(heliograph.CodeOverloaded)},
		{"last place", func(_ *h, _ *p, n *n) { n.Mirrors = 3 }, from(91)},
		{"too many from the address", func(_ *h, _ *p, n *n) { n.FromAddress = 4 }, refuse(heliograph.CodeOverloaded)},
		{"too many snapshots", func(h *h, _ *p, n *n) { h.LastApplied, n.Snapshots = 1, 2 }, refuse(heliograph.CodeOverloaded)},
		{"stream beside many snapshots", func(_ *h, _ *p, n *n) { n.Snapshots = 2 }, from(91)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, p, n := hello(), peer(heliograph.RoleMirror), node()
			tt.change(&h, &p, &n)
			got := session.Decide(h, p, n)
			if got.Accepted() != (got.Detail == "") {
				t.Errorf("code %s with detail %q", got.Code, got.Detail)
			}
			got.Detail = ""
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// forks lead from origin, left at revision 95, over a second cluster to a third.
func forks() []heliograph.Fork {
	return []heliograph.Fork{
		{Origin: "elsewhere/default@1", Revision: 20, Cluster: "prod-us", Database: "default", EtcdID: 0xabc},
		{Origin: origin.String(), Revision: 95, Cluster: "prod-eu", Database: "default", EtcdID: 0xdef},
		{Origin: "prod-eu/default@def", Revision: 97, Cluster: "prod-ap", Database: "default", EtcdID: 0x123},
	}
}

// A mirror of a cluster from which this one was promoted is accepted up to the
// fork, streamed if the history reaches that far, and compared as any other.
func TestDecideOverAFork(t *testing.T) {
	third := heliograph.Origin{Cluster: "prod-ap", Database: "default", EtcdID: 0x123}
	for _, tt := range []struct {
		name   string
		change func(*session.Hello, *session.Node)
		want   session.Decision
		detail string
	}{
		{"before", func(*session.Hello, *session.Node) {}, session.Decision{From: 91, Forks: forks()[1:]}, ""},
		{"at the fork", func(h *session.Hello, _ *session.Node) { h.LastApplied = 95 }, session.Decision{From: 96, Forks: forks()[1:]}, ""},
		{"before an earlier one", func(h *session.Hello, n *session.Node) {
			h.Origin, h.LastApplied, n.Floor = "elsewhere/default@1", 19, 5
		},
			session.Decision{From: 20, Forks: forks()}, ""},
		{"of the second cluster", func(h *session.Hello, _ *session.Node) { h.Origin, h.LastApplied = "prod-eu/default@def", 97 },
			session.Decision{From: 98, Forks: forks()[2:]}, ""},
		{"of the same", func(h *session.Hello, _ *session.Node) { h.Origin, h.LastApplied = third.String(), 99 }, session.Decision{From: 100}, ""},
		{"bumped", func(_ *session.Hello, n *session.Node) { n.Floor = 100 }, session.Decision{Snapshot: true, Forks: forks()[1:]}, ""},
		{"passed", func(h *session.Hello, _ *session.Node) { h.LastApplied = 96 }, session.Decision{Code: heliograph.CodeDiverged},
			"the mirror has followed prod-us/default@abc up to revision 96, and prod-ap/default@123 left that at revision 95"},
		{"promoted below the fork", func(h *session.Hello, n *session.Node) { n.Lineage.Forks[2].Revision = 80 }, session.Decision{Code: heliograph.CodeDiverged},
			"left that at revision 80"},
		{"unknown", func(h *session.Hello, _ *session.Node) { h.Origin = "prod-us/default@abd" },
			session.Decision{Code: heliograph.CodeDiverged, Origin: third.String()}, "no promotion is known"},
		{"too many", func(_ *session.Hello, n *session.Node) { n.MaxForks = 1 }, session.Decision{Code: heliograph.CodeDiverged}, "2 promotions lead to"},
		{"other records", func(h *session.Hello, n *session.Node) {
			h.Proof = heliograph.Proof{Rev: 90, Tails: []heliograph.TailDigest{{From: 80, Sum: 1}}}
			n.History = sums{}
		}, session.Decision{Code: heliograph.CodeDiverged}, "holds other records in revisions 80 to 90"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, n := hello(), node()
			n.Lineage = heliograph.Lineage{Origin: third, Forks: forks()}
			tt.change(&h, &n)
			got := session.Decide(h, peer(heliograph.RoleMirror), n)
			if !strings.Contains(got.Detail, tt.detail) || tt.detail == "" && got.Detail != "" {
				t.Errorf("detail %q, want %q", got.Detail, tt.detail)
			}
			got.Detail = ""
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// sums is a history in which every digest is 2.
type sums struct{}

func (sums) DigestAt(int64) (uint64, bool)     { return 0, false }
func (sums) Digest(_, _ int64) (uint64, error) { return 2, nil }

// TestDecideOrder breaks one thing more with every step, from the last check to
// the first: the earlier check must win.
func TestDecideOrder(t *testing.T) {
	h, p, n := hello(), peer(heliograph.RoleMirror), node()
	steps := []struct {
		breakIt func()
		want    heliograph.Code
	}{
		{func() { n.Mirrors = 4 }, heliograph.CodeOverloaded},
		{func() { h.LastApplied = 200 }, heliograph.CodeDiverged},
		{func() { n.Applied = 0 }, heliograph.CodeNotReady},
		{func() { n.Path = []string{"there"} }, heliograph.CodeCycle},
		{func() { h.NodeID = "self-7" }, heliograph.CodeSelfMirror},
		{func() { h.Database = "x" }, heliograph.CodeUnknownDatabase},
		{func() { h.Cluster = "x" }, heliograph.CodeClusterMismatch},
		{func() { h.Version = 9 }, heliograph.CodeBadVersion},
		{func() { n.Allow = []string{"x"} }, heliograph.CodeNotAuthorized},
		{func() { p.Identity.Role = heliograph.RoleSource }, heliograph.CodeObserverOnly},
		{func() { p.Err = errors.New("x") }, heliograph.CodeNotAuthorized},
	}
	for _, s := range steps {
		s.breakIt()
		if got := session.Decide(h, p, n); got.Code != s.want {
			t.Fatalf("got %s, want %s", got.Code, s.want)
		}
	}
}

// TestDecideTellsStrangersNothing: who is not allowed learns no name, revision
// or origin, right or wrong as its hello may be.
func TestDecideTellsStrangersNothing(t *testing.T) {
	n := node()
	n.Allow = []string{"someone"}
	for _, p := range []session.Peer{
		{Err: errors.New("no URI")},
		peer(heliograph.RoleMirror),
		peer(heliograph.RoleSource),
	} {
		for _, h := range []session.Hello{hello(), {Cluster: "wrong", Version: 7}} {
			d := session.Decide(h, p, n)
			d.Detail += d.Origin
			for _, secret := range []string{"relay-eu", "default", "self-7", "top", "prod-us", "100", "someone", "abc"} {
				if strings.Contains(d.Detail, secret) {
					t.Errorf("detail %q tells %q", d.Detail, secret)
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	for want, got := range map[string]string{
		"snapshot": session.Snapshot.String(), "catching-up": session.CatchingUp.String(), "live": session.Live.String(),
		"wait": session.Wait.String(), "gone": session.Gone.String(), "state 9": session.State(9).String(), "action 9": session.Action(9).String(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
