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
