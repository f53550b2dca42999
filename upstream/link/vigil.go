package link

import (
	"fmt"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// vigil is what was heard of the source and when, and decides whether it still
// lives. The clock is its callers'.
type vigil struct {
	peer                          string
	silence, stall, snapshotStall time.Duration
	notAfter                      time.Time // of the source's certificate

	mu        sync.Mutex
	heard     time.Time     // the last frame or bulk byte
	unheard   time.Duration // for which the source has heard nothing from here, as it last said
	waiting   time.Time     // since when bulk is waited for; zero while it is not
	snapshot  bool          // the bulk waited for is a snapshot's
	behind    time.Time     // since when the source says that it is ahead; zero if it is not
	head      int64         // the source's newest revision, which never falls
	upstream  int64         // what it knows its own upstream to have
	compacted int64         // its compaction revision
	stray     time.Time     // since when the source does not follow its own upstream; zero if it does
	why       string        // it does not
}

// hear notes a frame on the control stream.
func (v *vigil) hear(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.heard = now
}

// await notes that bulk is waited for from now on. While the replica is busy
// nothing is, and no stall can be blamed on the source.
func (v *vigil) await(now time.Time, snapshot bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting, v.snapshot = now, snapshot
}

// received notes the end of that wait.
func (v *vigil) received(now time.Time, bytes int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting = time.Time{}
	if bytes > 0 {
		v.heard = now
	}
}

// heartbeat notes where the source stands and where the replica was then.
func (v *vigil) heartbeat(now time.Time, h wire.Heartbeat, applied int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.head = max(v.head, h.HeadLSN)
	v.upstream = max(v.upstream, h.UpstreamLSN)
	v.compacted = max(v.compacted, h.CompactLSN)
	v.unheard = millis(h.UnheardMS)
	switch v.why = h.Why; {
	case h.Why == "":
		v.stray = time.Time{}
	case v.stray.IsZero():
		v.stray = now
	}
	switch {
	case h.HeadLSN <= applied:
		v.behind = time.Time{}
	case v.behind.IsZero():
		v.behind = now
	}
}

// strays returns why the source does not follow its own upstream, if it has not for so
// long; "" if it does.
func (v *vigil) strays(now time.Time, long time.Duration) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stray.IsZero() || now.Sub(v.stray) < long {
		return ""
	}
	return v.why
}

// entries notes the head that came with entries.
func (v *vigil) entries(head int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.head = max(v.head, head)
}

// horizon returns the newest revision known anywhere up the chain, and the
// source's compaction revision.
func (v *vigil) horizon() (head, compacted int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return max(v.head, v.upstream), v.compacted
}

// verdict returns why the source must be given up, nil while it need not.
func (v *vigil) verdict(now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	quiet := now.Sub(v.heard)
	if quiet >= v.silence {
		return &fault{"silent", heliograph.CodeTimeout, fmt.Errorf("nothing heard from %s for %s", v.peer, quiet.Round(100*time.Millisecond))}
	}
	// A little sooner than silence, to say so as soon after the last frame that
	// arrived: the source's heartbeat has to come first.
	if v.unheard >= v.silence*4/5 {
		return &fault{"unheard", heliograph.CodeTimeout, fmt.Errorf("%s has heard nothing from us for %s, and we hear it: does the network let UDP through that way?", v.peer, v.unheard.Round(100*time.Millisecond))}
	}
	if !v.notAfter.IsZero() && now.After(v.notAfter) {
		return &fault{"expired", heliograph.CodeTimeout, fmt.Errorf("the certificate of %s expired at %s", v.peer, v.notAfter.UTC().Format(time.RFC3339))}
	}
	if v.waiting.IsZero() {
		return nil
	}
	if v.snapshot {
		if d := now.Sub(v.waiting); d >= v.snapshotStall {
			return &fault{"stalled", heliograph.CodeTimeout, fmt.Errorf("%s sent nothing more of its snapshot for %s", v.peer, d.Round(100*time.Millisecond))}
		}
		return nil
	}
	since := v.waiting
	if v.behind.After(since) {
		since = v.behind
	}
	if d := now.Sub(since); !v.behind.IsZero() && d >= v.stall {
		return &fault{"stalled", heliograph.CodeTimeout, fmt.Errorf("%s is at revision %d but sent no entries for %s", v.peer, v.head, d.Round(100*time.Millisecond))}
	}
	return nil
}
