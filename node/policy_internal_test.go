package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
)

// lost is a mirror in the state in which one promotes: it has all that was known,
// and the source is gone.
func lost(change func(*facts)) facts {
	f := facts{applied: 100, known: 100, state: heliograph.Disconnected, why: "no answer", contact: time.Minute, servesClient: true}
	change(&f)
	return f
}

// In every status, and with everything that stands against a promotion.
func TestPromotionPolicy(t *testing.T) {
	const (
		may    = "may"
		forced = "forced"
		never  = "never"
	)
	for name, test := range map[string]struct {
		f    facts
		want string
		why  string // in the first reason
	}{
		"disconnected":                            {lost(func(*facts) {}), may, ""},
		"nothing heard since the start":           {lost(func(f *facts) { f.known, f.contact = 0, -1 }), may, ""},
		"known revisions lost with the source":    {lost(func(f *facts) { f.known = 150 }), may, ""},
		"degraded, reconnecting":                  {lost(func(f *facts) { f.state = heliograph.Degraded }), may, ""},
		"the source node lives, its etcd is dead": {lost(func(f *facts) { f.state, f.alive = heliograph.Degraded, true }), may, ""},
		"bootstrapping again over a whole copy":   {lost(func(f *facts) { f.state = heliograph.Bootstrapping }), may, ""},

		"following":                        {lost(func(f *facts) { f.state, f.alive, f.answers = heliograph.Following, true, true }), forced, "answers"},
		"the origin answers, nobody else":  {lost(func(f *facts) { f.answers = true }), forced, "answers"},
		"catching up from a source node":   {lost(func(f *facts) { f.state, f.alive, f.known = heliograph.CatchingUp, true, 150 }), forced, "revisions 101 to 150"},
		"degraded, the upstream has more":  {lost(func(f *facts) { f.state, f.alive, f.known = heliograph.Degraded, true, 101 }), forced, "revisions 101 to 101"},
		"bootstrapping again, and it goes": {lost(func(f *facts) { f.state, f.alive, f.known = heliograph.Bootstrapping, true, 150 }), forced, "revisions 101 to 150"},
		"users have changed":               {lost(func(f *facts) { f.users = "users and roles have changed" }), forced, "have changed"},
		"a bump below what is known":       {lost(func(f *facts) { f.known, f.bump = 150, 49 }), forced, "less than the 50 revisions"},
		"a bump that is just enough":       {lost(func(f *facts) { f.known, f.bump = 150, 50 }), may, ""},
		"diverged":                         {lost(func(f *facts) { f.state, f.why = heliograph.Diverged, "another history" }), forced, "another history"},

		"the source node is diverged from its etcd": {lost(func(f *facts) { f.state, f.alive, f.unasked = heliograph.Degraded, true, "it is diverged" }), forced, "could not be asked (it is diverged)"},
		"the source node refuses":                   {lost(func(f *facts) { f.unasked = "our certificate has expired" }), forced, "expired"},
		"a source node beside its etcd":             {lost(func(f *facts) { f.source, f.answers = true, true }), forced, "it is a source node, and its etcd answers"},
		"a source node without clients":             {lost(func(f *facts) { f.source, f.servesClient = true, false }), never, "it is a source node"},
		"a source node without its etcd":            {lost(func(f *facts) { f.source = true }), may, ""},

		"no snapshot":              {lost(func(f *facts) { f.applied, f.known = 0, 0 }), never, "no whole snapshot"},
		"bootstrapping":            {lost(func(f *facts) { f.state, f.alive, f.applied = heliograph.Bootstrapping, true, 0 }), never, "no whole snapshot"},
		"damaged":                  {lost(func(f *facts) { f.state, f.damaged = heliograph.Diverged, errors.New("bit rot") }), never, "bit rot"},
		"no clients":               {lost(func(f *facts) { f.servesClient = false }), never, "--listen-clients"},
		"peer port in use":         {lost(func(f *facts) { f.peers = errors.New("the port is in use") }), never, "in use"},
		"no room":                  {lost(func(f *facts) { f.room = errors.New("make room") }), never, "make room"},
		"promoting":                {lost(func(f *facts) { f.promoting = true }), never, "already"},
		"never outweighs forcible": {lost(func(f *facts) { f.answers, f.servesClient = true, false }), never, "--listen-clients"},
	} {
		t.Run(name, func(t *testing.T) {
			list := refusals(test.f)
			got := may
			switch {
			case allowed(list, true) != nil:
				got = never
			case allowed(list, false) != nil:
				got = forced
			}
			if got != test.want {
				t.Errorf("%s, want %s: %+v", got, test.want, list)
			}
			if test.why != "" && (len(list) == 0 || !strings.Contains(list[0].Reason, test.why)) {
				t.Errorf("reasons %+v, want %q first", list, test.why)
			}
		})
	}
}

func TestRefusalSaysWhetherForceHelps(t *testing.T) {
	both := []Refusal{{"a", true}, {"b", false}}
	for _, test := range []struct {
		list  []Refusal
		force bool
		want  string
	}{
		{both[:1], false, "not promoted: a; --force promotes all the same"},
		{both[:1], true, ""},
		{both, false, "not promoted: a; b"},
		{both, true, "not promoted: b"},
		{nil, false, ""},
	} {
		got := ""
		if err := allowed(test.list, test.force); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// What may have been seen and is not here asks for a bump; what cannot have been
// does not.
func TestBumpAdvice(t *testing.T) {
	for name, test := range map[string]struct {
		f      facts
		needed bool
		why    string
	}{
		"lost with known revisions": {lost(func(f *facts) { f.known = 150 }), true, "revisions 101 to 150"},
		"last contact a minute ago": {lost(func(*facts) {}), true, "1m0s ago"},
		"its etcd lost before that": {lost(func(f *facts) { f.contact, f.staleness = time.Second, 2*time.Minute }), true, "since 2m0s ago"},
		"nothing heard":             {lost(func(f *facts) { f.known = 0 }), true, "nothing was heard"},
		"diverged":                  {lost(func(f *facts) { f.state, f.known = heliograph.Diverged, 0 }), true, "another history"},
		"everything, forced":        {lost(func(f *facts) { f.answers = true }), false, "is not needed if nothing is written"},
		"behind, forced":            {lost(func(f *facts) { f.answers, f.known = true, 150 }), true, "revisions 101 to 150"},
	} {
		a := advise(test.f)
		if a.Needed != test.needed || !strings.Contains(a.Why, test.why) || a.Revision != SuggestedBump || a.Cost == "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// A plan that is being made must not hold the port for members when etcd needs it.
func TestPlanLeavesTheTakenAddressAlone(t *testing.T) {
	n := new(Node)
	if _, _, err := n.listenPeers("http://127.0.0.1:0"); err == nil {
		t.Error("port 0 is no address for members")
	}
	n.takePeers(true)
	if _, err := n.tryPeers("http://127.0.0.1:1"); !errors.Is(err, errPromoting) {
		t.Errorf("taken: %v", err)
	}
	n.takePeers(false)
	if _, err := n.tryPeers("http://127.0.0.1:1"); errors.Is(err, errPromoting) {
		t.Errorf("given back: %v", err)
	}
}
