package heliograph_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
)

// lineage is that of a cluster that was promoted from one that was promoted itself:
// us, left at 100; eu, left at 250; ap.
func lineage() heliograph.Lineage {
	return heliograph.Lineage{
		Origin: heliograph.Origin{Cluster: "ap", Database: "default", EtcdID: 3},
		Forks: []heliograph.Fork{
			{Origin: "us/default@1", Revision: 100, Cluster: "eu", Database: "default", EtcdID: 2, Token: "first"},
			{Origin: "eu/default@2", Revision: 250, Bump: 1000, Cluster: "ap", Database: "default", EtcdID: 3, Token: "second"},
		},
	}
}

func TestAdmit(t *testing.T) {
	for _, test := range []struct {
		origin string
		rev    int64
		left   []int64 // the forks' revisions, if others
		forks  int
		at     int64 // where a divergence shows
		why    string
	}{
		{"ap/default@3", 5000, nil, 0, 0, ""},
		{"us/default@1", 1, nil, 2, 0, ""},
		{"us/default@1", 100, nil, 2, 0, ""},
		{"us/default@1", 101, nil, 0, 101, "the mirror has followed us/default@1 up to revision 101, and ap/default@3 left that at revision 100"},
		{"eu/default@2", 250, nil, 1, 0, ""},
		{"eu/default@2", 251, nil, 0, 251, "left that at revision 250"},
		{"eu/default@9", 3, nil, 0, 0, "no promotion is known that leads from the one to the other"},
		{"", 3, nil, 0, 0, "no promotion is known"},
		// The second cluster was promoted from a mirror that had not come to the first fork.
		{"us/default@1", 80, []int64{100, 80}, 2, 0, ""},
		{"us/default@1", 90, []int64{100, 80}, 0, 81, "left that at revision 80"},
	} {
		l := lineage()
		for i, rev := range test.left {
			l.Forks[i].Revision = rev
		}
		forks, diverged := l.Admit(test.origin, test.rev)
		if (diverged != nil) != (test.why != "") || diverged != nil && (diverged.Rev != test.at || !strings.Contains(diverged.Why, test.why)) {
			t.Errorf("%s at %d: %v, want %q", test.origin, test.rev, diverged, test.why)
		}
		if len(forks) != test.forks || len(forks) > 0 && forks[0].Origin != test.origin {
			t.Errorf("%s at %d: forks %+v, want %d", test.origin, test.rev, forks, test.forks)
		}
	}
}

func TestLeftAt(t *testing.T) {
	l := lineage()
	l.Forks = append(l.Forks, heliograph.Fork{Origin: "ap/default@3", Revision: 300}) // its own id, once before
	for origin, want := range map[string]int64{"us/default@1": 100, "eu/default@2": 250, "ap/default@3": 0, "eu/default@9": 0, "": 0} {
		f, left := l.LeftAt(origin)
		if f.Revision != want || left != (want > 0) {
			t.Errorf("%q: left %v at %d, want %d", origin, left, f.Revision, want)
		}
	}
}

func TestAdopt(t *testing.T) {
	to := lineage()
	us, err := heliograph.ParseOrigin("us/default@1")
	if err != nil {
		t.Fatal(err)
	}
	before := heliograph.Fork{Origin: "old/default@9", Revision: 7, Cluster: "us", Database: "default", EtcdID: 1}
	own := heliograph.Lineage{Origin: us, Forks: []heliograph.Fork{before}}
	got := own.Adopt(to.Origin, to.Forks)
	if want := append([]heliograph.Fork{before}, to.Forks...); got.Origin != to.Origin || !reflect.DeepEqual(got.Forks, want) {
		t.Errorf("got %+v", got)
	}
	if len(own.Forks) != 1 || own.Forks[0] != before {
		t.Errorf("what it came from has changed: %+v", own)
	}
	// A list that is known in part is not told twice.
	known := heliograph.Lineage{Origin: us, Forks: []heliograph.Fork{before, to.Forks[0]}}
	if again := known.Adopt(to.Origin, to.Forks); !reflect.DeepEqual(again, got) {
		t.Errorf("got %+v, want %+v", again, got)
	}
	if same := own.Adopt(us, nil); !reflect.DeepEqual(same, own) {
		t.Errorf("got %+v", same)
	}
	for range heliograph.MaxForks {
		own.Forks = append(own.Forks, before)
	}
	if many := own.Adopt(to.Origin, to.Forks); len(many.Forks) != heliograph.MaxForks || many.Forks[heliograph.MaxForks-1] != to.Forks[1] {
		t.Errorf("%d forks", len(many.Forks))
	}
}

func TestForksRoundTrip(t *testing.T) {
	forks := lineage().Forks
	forks[0].At = time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	b, err := heliograph.EncodeForks(forks)
	if err != nil {
		t.Fatal(err)
	}
	got, err := heliograph.ParseForks(b)
	if err != nil || !reflect.DeepEqual(got, forks) {
		t.Errorf("got %+v, %v", got, err)
	}
	if none, err := heliograph.ParseForks(nil); none != nil || err != nil {
		t.Errorf("nothing gave %v, %v", none, err)
	}
	if f := forks[1]; f.First() != 1251 || f.Heir() != lineage().Origin {
		t.Errorf("first %d, heir %s", f.First(), f.Heir())
	}
}

func TestForksAreChecked(t *testing.T) {
	spoiled := func(spoil func(*heliograph.Fork)) string {
		f := lineage().Forks[0]
		spoil(&f)
		b, err := json.Marshal([]heliograph.Fork{f})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for list, want := range map[string]string{
		"{}":                        "cannot be read",
		`[{"etcd_cluster_id":"x"}]`: "cannot be read",
		strings.Repeat(" ", 1<<20):  "at most",
		"[" + strings.Repeat("{},", heliograph.MaxForks) + "{}]":                "has 65, at most 64",
		spoiled(func(f *heliograph.Fork) { f.Origin = "us" }):                   "origin",
		spoiled(func(f *heliograph.Fork) { f.Origin = "us/default@01" }):        "is not written as",
		spoiled(func(f *heliograph.Fork) { f.Cluster = "" }):                    "heir",
		spoiled(func(f *heliograph.Fork) { f.Revision = 0 }):                    "fork at revision 0",
		spoiled(func(f *heliograph.Fork) { f.Bump = -1 }):                       "bumped by -1",
		spoiled(func(f *heliograph.Fork) { f.Token = strings.Repeat("t", 65) }): "token of 65 bytes",
	} {
		_, err := heliograph.ParseForks([]byte(list))
		wantError(t, err, want)
	}
}
