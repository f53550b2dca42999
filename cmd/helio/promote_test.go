package main

import (
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/promote"
)

// What was left out is said beside what comes after it.
func TestPrintPromoted(t *testing.T) {
	for _, test := range []struct {
		bump int64
		want string
	}{
		{0, "FIRST WRITE   revision 4\nETCD"},
		{1000, "FIRST WRITE   revision 1004\nLEFT OUT      1000 revisions before it (--bump-revision)\n"},
	} {
		var out strings.Builder
		rec := promote.Record{Fork: heliograph.Fork{Revision: 3, Bump: test.bump}}
		if err := printPromoted(&out, rec, node.Plan{}, ""); err != nil || !strings.Contains(out.String(), test.want) {
			t.Errorf("%v: got\n%swant\n%s", err, out.String(), test.want)
		}
	}
}

// A source node may be heard from that has heard nothing itself for long.
func TestContact(t *testing.T) {
	for _, test := range []struct {
		contact, staleness int64
		want               string
	}{
		{48_200, 48_600, "last contact 48.2s ago"},
		{400, 12_000, "last contact 400ms ago; what was written since 12s ago is not known there"},
		{400, -1, "last contact 400ms ago"},
	} {
		if got := contact(node.Plan{LastContactMS: test.contact, StalenessMS: test.staleness}); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
