package heliograph_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/heliograph/heliograph"
)

func TestErrorTexts(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{&heliograph.GapError{Applied: 7, Got: 9}, "revision 9 does not follow the applied revision 7"},
		{&heliograph.DivergedError{Why: "another etcd"}, "diverged: another etcd"},
		{&heliograph.DivergedError{Rev: 5, Why: "other bytes"}, "diverged at revision 5: other bytes"},
		{&heliograph.RefusedError{Code: heliograph.CodeCycle}, "refused by the source: cycle"},
		{&heliograph.RefusedError{Code: heliograph.CodeNotReady, Detail: "no snapshot yet"}, "refused by the source: not ready: no snapshot yet"},
		{&heliograph.RefusedError{Code: 0xfe}, "refused by the source: code 0xfe"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestErrorsThroughWrapping(t *testing.T) {
	err := fmt.Errorf("apply revision 9: %w", &heliograph.GapError{Applied: 7, Got: 9})
	if gap, ok := errors.AsType[*heliograph.GapError](err); !ok || gap.Applied != 7 {
		t.Errorf("no gap in %v", err)
	}
	if err := fmt.Errorf("range: %w", heliograph.ErrCompacted); !errors.Is(err, heliograph.ErrCompacted) || errors.Is(err, heliograph.ErrFutureRevision) {
		t.Errorf("%v is not recognised", err)
	}
}

// The numbers are on the wire: they never change.
func TestCodes(t *testing.T) {
	for _, test := range []struct {
		code          heliograph.Code
		number        uint8
		name          string
		configuration bool
	}{
		{heliograph.CodeOK, 0x00, "ok", false},
		{heliograph.CodeClusterMismatch, 0x01, "cluster-id mismatch", true},
		{heliograph.CodeObserverOnly, 0x02, "observer only", true},
		{heliograph.CodeBadVersion, 0x03, "bad version", true},
		{heliograph.CodeUnknownDatabase, 0x10, "unknown database", true},
		{heliograph.CodeDiverged, 0x11, "diverged", true},
		{heliograph.CodeSelfMirror, 0x12, "self-mirror", true},
		{heliograph.CodeNotAuthorized, 0x13, "not authorized", true},
		{heliograph.CodeOverloaded, 0x14, "overloaded", false},
		{heliograph.CodeNotReady, 0x15, "not ready", false},
		{heliograph.CodeCycle, 0x16, "cycle", true},
		{heliograph.CodeShuttingDown, 0x17, "shutting down", false},
		{heliograph.CodeHistoryGone, 0x18, "history gone", false},
		{heliograph.CodeReset, 0x19, "reset", false},
		{heliograph.CodeProtocol, 0x1a, "protocol error", false},
		{heliograph.CodeTimeout, 0x1b, "timeout", false},
		{0xfe, 0xfe, "code 0xfe", false},
	} {
		if uint8(test.code) != test.number || test.code.String() != test.name || test.code.Configuration() != test.configuration {
			t.Errorf("got %#x %q configuration=%v, want %#x %q %v", uint8(test.code), test.code, test.code.Configuration(), test.number, test.name, test.configuration)
		}
	}
}
