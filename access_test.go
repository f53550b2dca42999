package heliograph_test

import (
	"testing"

	"github.com/heliograph/heliograph"
)

func TestAccessControlRoundTrip(t *testing.T) {
	for _, a := range []heliograph.AccessControl{{}, {Enabled: true}, {Enabled: true, Revision: 1<<64 - 1}, {Revision: 7}} {
		got, err := heliograph.ParseAccessControl(a.Append(nil))
		if err != nil || *got != a {
			t.Errorf("%+v: %+v, %v", a, got, err)
		}
	}
	if a, err := heliograph.ParseAccessControl(nil); a != nil || err != nil {
		t.Errorf("nothing: %+v, %v", a, err)
	}
	for _, bad := range []string{"", "\x01", "\x02\x00\x00\x00\x00\x00\x00\x00\x00", "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
		if a, err := heliograph.ParseAccessControl([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, a)
		}
	}
	if a := heliograph.EtcdAccessControl([]byte{1}, []byte{0, 0, 0, 0, 0, 0, 1, 2}); a != (heliograph.AccessControl{Enabled: true, Revision: 258}) {
		t.Errorf("etcd's: %+v", a)
	}
	if a := heliograph.EtcdAccessControl(nil, nil); a != (heliograph.AccessControl{}) {
		t.Errorf("etcd's, when it never had any: %+v", a)
	}
}

// Whom a replica would let in is the source's affair: it is said whenever that is not
// known to be the same.
func TestOutdatedUsers(t *testing.T) {
	off, on := heliograph.AccessControl{Revision: 5}, heliograph.AccessControl{Enabled: true, Revision: 5}
	for _, test := range []struct {
		here     heliograph.AccessControl
		source   *heliograph.AccessControl
		outdated bool
	}{
		{off, &off, false},
		{off, &heliograph.AccessControl{Revision: 9}, false}, // nobody is asked who they are
		{off, &heliograph.AccessControl{}, false},
		{on, &on, false},
		{on, &heliograph.AccessControl{Enabled: true, Revision: 6}, true},
		{on, &heliograph.AccessControl{Enabled: true}, true}, // it does not say
		{off, &on, true},
		{on, &off, true},
		{off, nil, true},
		{on, nil, true},
	} {
		if why := test.here.Outdated(test.source); (why != "") != test.outdated {
			t.Errorf("%+v, and the source %+v: %q", test.here, test.source, why)
		}
	}
}
