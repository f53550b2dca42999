package source_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// A relay whose replica goes over a fork ends its sessions, and tells its mirrors
// of the fork when they come again, but not those that it need not.
func TestForkIsHandedDown(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(12), nil)
	p := w.connect("m1")
	if ack := p.follow(7); ack.Origin != origin.String() || len(ack.Forks) != 0 {
		t.Errorf("ack %+v", ack)
	}
	p.take(w.replica, 12)
	fork := heliograph.Fork{Origin: origin.String(), Revision: 12, Cluster: "prod-eu", Database: "default", EtcdID: 0x55, Token: "t"}
	to := heliograph.Lineage{Origin: fork.Heir(), Forks: []heliograph.Fork{fork}}
	w.replica.adopt(to)
	w.replica.put(1, 10)
	p.goodbye(heliograph.CodeReset)

	for _, tt := range []struct {
		name    string
		hello   wire.Hello
		forks   int
		refused string
	}{
		{"at the fork", hello(12), 1, ""},
		{"passed it", hello(13), 0, "left that at revision 12"},
		{"has it", wire.Hello{Origin: to.Origin.String(), LastAppliedLSN: 13}, 0, ""},
		{"fresh", wire.Hello{}, 0, ""},
		{"of neither", wire.Hello{Origin: "prod-us/default@1", LastAppliedLSN: 3}, 0, "no promotion is known"},
	} {
		h := hello(0)
		h.LastAppliedLSN, h.Origin = tt.hello.LastAppliedLSN, tt.hello.Origin
		ack := w.connect("m1").greet(h)
		if tt.refused != "" {
			// Only who may have left this history is told which it is.
			origin := ""
			if strings.Contains(tt.refused, "is known") {
				origin = to.Origin.String()
			}
			if ack.Accepted || ack.ErrorCode != heliograph.CodeDiverged || ack.Origin != origin || !strings.Contains(ack.ErrorDetail, tt.refused) {
				t.Errorf("%s: ack %+v", tt.name, ack)
			}
			continue
		}
		if !ack.Accepted || ack.Origin != to.Origin.String() || len(ack.Forks) != tt.forks {
			t.Errorf("%s: ack %+v", tt.name, ack)
		}
		if tt.forks > 0 && (ack.Forks[0].Token != "t" || !reflect.DeepEqual(ack.Forks[0].Heir(), to.Origin)) {
			t.Errorf("%s: fork %+v", tt.name, ack.Forks[0])
		}
	}
}
