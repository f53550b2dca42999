package store

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// maxWishes bounds what waits to be compacted: a compaction every minute for
// nearly three days.
const maxWishes = 4096

// wish is a compaction revision of the upstream that has not been followed yet.
type wish struct {
	rev int64
	at  time.Time // when it was learned
}

// wishes are pending compactions, in ascending order of revision. The value is
// never changed in place, so that a copy may be used without a lock.
type wishes []wish

// with adds rev, learned at now, unless it is no news. A full list is thinned
// to every other entry: the upstream's revisions stay exact, some of the history
// stays a little longer.
func (w wishes) with(rev int64, now time.Time) (wishes, bool) {
	if len(w) > 0 && rev <= w[len(w)-1].rev {
		return w, false
	}
	next := make(wishes, 0, len(w)+1)
	for i, e := range w {
		if len(w) < maxWishes || i%2 == 1 {
			next = append(next, e)
		}
	}
	return append(next, wish{rev: rev, at: now}), true
}

// after returns the wishes above rev.
func (w wishes) after(rev int64) wishes {
	i, _ := slices.BinarySearchFunc(w, rev+1, func(e wish, rev int64) int { return cmp.Compare(e.rev, rev) })
	return slices.Clone(w[i:])
}

// due returns the highest wish that is not above limit and at least delay old,
// 0 if there is none; and the time at which the next becomes old enough, zero
// if age keeps none back.
func (w wishes) due(now time.Time, delay time.Duration, limit int64) (rev int64, next time.Time) {
	for _, e := range w {
		if e.at.After(now) {
			e.at = now // learned under a clock that was ahead
		}
		if ripe := e.at.Add(delay); ripe.After(now) {
			return rev, ripe
		}
		if e.rev <= limit {
			rev = e.rev
		}
	}
	return rev, time.Time{}
}

// encode returns the wishes as pairs of big-endian u64: revision, and
// milliseconds since 1970.
func (w wishes) encode() []byte {
	b := make([]byte, 0, 16*len(w))
	for _, e := range w {
		b = binary.BigEndian.AppendUint64(b, uint64(e.rev))
		b = binary.BigEndian.AppendUint64(b, uint64(e.at.UnixMilli()))
	}
	return b
}

func decodeWishes(b []byte) (wishes, error) {
	if len(b)%16 != 0 || len(b)/16 > maxWishes {
		return nil, fmt.Errorf("the list of pending compactions has %d bytes: want a multiple of 16, at most %d", len(b), 16*maxWishes)
	}
	var w wishes
	for ; len(b) > 0; b = b[16:] {
		e := wish{
			rev: int64(binary.BigEndian.Uint64(b)),
			at:  time.UnixMilli(int64(binary.BigEndian.Uint64(b[8:]))),
		}
		if e.rev <= 0 || len(w) > 0 && e.rev <= w[len(w)-1].rev {
			return nil, fmt.Errorf("the list of pending compactions is not in order at revision %d", e.rev)
		}
		w = append(w, e)
	}
	return w, nil
}
