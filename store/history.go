package store

import (
	"errors"
	"fmt"
	"math"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/heliograph/heliograph"
)

// historyChunk is how many records are read under one lock.
const historyChunk = 512

// History visits the records of whole revisions, from revision from on and in
// order, until maxBytes of keys and values have been passed; always at least one
// revision if there is one. It returns the last revision visited, from-1 if
// none.
//
// It returns heliograph.ErrCompacted if the history does not reach back to from,
// and heliograph.ErrFutureRevision if from is above Applied()+1. On any error,
// also one that visit returned, what was visited must be dropped. Key and value
// are valid during the call of visit only, which must be quick and must not call
// the store: a lock is held.
func (s *Store) History(from int64, maxBytes int, visit func(key, value []byte) error) (last int64, err error) {
	c, err := s.acquire()
	if err != nil {
		return from - 1, err
	}
	defer c.users.Done()
	to := c.applied.Load()
	if floor := c.floor.Load(); from <= floor {
		return from - 1, fmt.Errorf("history from revision %d: %w (at %d)", from, heliograph.ErrCompacted, floor)
	}
	if from > to+1 {
		return from - 1, fmt.Errorf("history from revision %d: %w (%d is applied)", from, heliograph.ErrFutureRevision, to)
	}
	h := historyReader{
		be: c.be, to: to, left: maxBytes, visit: visit,
		end: heliograph.RevisionKey{Main: to + 1}.Append(nil),
		// As if the revision before had been read to its last possible record.
		last: heliograph.RevisionKey{Main: from - 1, Sub: math.MaxInt64 - 1},
	}
	for done := from > to; !done && err == nil; {
		done, err = h.chunk(from)
	}
	// A compaction raises the floor before it removes anything.
	if floor := c.floor.Load(); from <= floor {
		return from - 1, fmt.Errorf("history from revision %d: %w (at %d)", from, heliograph.ErrCompacted, floor)
	}
	if err != nil {
		return from - 1, err
	}
	return h.last.Main, nil
}

var errHole = errors.New("the history has a hole: the file is damaged; a resync replaces it")

type historyReader struct {
	be    backend.Backend
	to    int64 // the last revision to read
	left  int   // bytes
	visit func(key, value []byte) error

	last       heliograph.RevisionKey // visited last
	start, end []byte
}

// chunk visits some records and reports whether that was all.
func (h *historyReader) chunk(from int64) (done bool, err error) {
	tx := h.be.ReadTx()
	tx.RLock()
	defer tx.RUnlock()

	h.start = heliograph.RevisionKey{Main: h.last.Main, Sub: h.last.Sub + 1}.Append(h.start[:0])
	keys, values := tx.UnsafeRange(schema.Key, h.start, h.end, historyChunk)
	all := len(keys) < historyChunk
	if !all {
		// When a limit cuts the answer short, the backend prefers what is not
		// committed yet to what comes first, and leaves out committed records in
		// between. The uncommitted ones are the newest, and a limit of 1 finds
		// the first of them; below it, nothing is left out.
		first, _ := tx.UnsafeRange(schema.Key, h.start, h.end, 1)
		if k, v := tx.UnsafeRange(schema.Key, h.start, first[0], historyChunk); len(k) > 0 {
			keys, values = k, v
		}
	}
	for i, key := range keys {
		rk, err := heliograph.ParseRevisionKey(key)
		if err != nil {
			return false, err
		}
		if !h.follows(rk) {
			return false, fmt.Errorf("after revision %d: %w", h.last.Main, errHole)
		}
		if rk.Main > h.last.Main && rk.Main > from && h.left <= 0 {
			return true, nil
		}
		if err := h.visit(key, values[i]); err != nil {
			return false, err
		}
		h.left -= len(key) + len(values[i])
		h.last = rk
	}
	if all && h.last.Main < h.to {
		return false, fmt.Errorf("after revision %d: %w", h.last.Main, errHole)
	}
	return all, nil
}

// follows reports whether rk can come after the last record.
func (h *historyReader) follows(rk heliograph.RevisionKey) bool {
	return rk.Main == h.last.Main && rk.Sub == h.last.Sub+1 || rk.Main == h.last.Main+1 && rk.Sub == 0
}
