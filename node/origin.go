package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
)

// How long a plan asks whether the origin lives. It takes as long only where nobody
// says anything: each node on the way up may have to dial, and the last one every
// member of etcd, in turn; and where nothing has answered that way, the same by way of
// the other hosts of --from, which are asked at once.
const (
	originWait = 90 * time.Second
	hostWait   = 10 * time.Second // more for each further host of --from, to dial
	forcedWait = time.Second      // of somebody who knows better
)

// inquiry is what came of asking whether the origin lives. If it does not answer,
// nothing did, unless unasked is set.
type inquiry struct {
	rev     int64 // its newest revision
	answers bool
	unasked bool   // it was not asked, and may live
	why     string // it does not answer, or could not be asked
}

// askOrigin asks the origin for its newest revision, which has nodes dial that wait
// for their next try.
func (m *mirroring) askOrigin(ctx context.Context, opts PromoteOptions, promoting bool) inquiry {
	switch {
	case promoting:
		return inquiry{unasked: true, why: "this node is being promoted"}
	case m.tracker.View().State == heliograph.Diverged:
		return inquiry{unasked: true, why: "this node is diverged, and follows nobody whom it could ask"}
	case m.store.Applied() == 0:
		return inquiry{unasked: true, why: "there is nothing to promote"}
	}
	wait := originWait
	if m.cfg.From != nil {
		wait += time.Duration(len(m.cfg.From.Hosts)-1) * hostWait
	}
	if opts.Force {
		wait = forcedWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	rev, err := m.readIndex(ctx)
	if err != nil {
		_, nobody := errors.AsType[*heliograph.UnansweredError](err)
		return inquiry{unasked: !nobody, why: err.Error()}
	}
	return inquiry{rev: rev, answers: true}
}

// readIndex asks the origin for its newest revision, for this node and for those
// below. What a node that is diverged would be told is of another history.
func (m *mirroring) readIndex(ctx context.Context) (int64, error) {
	if v := m.tracker.View(); v.State == heliograph.Diverged {
		return 0, fmt.Errorf("it is diverged, and asks nobody: %s", v.Why)
	}
	return m.upstream.ReadIndex(ctx)
}
