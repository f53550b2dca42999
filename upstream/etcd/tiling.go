package etcd

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/heliograph/heliograph"
)

// Numbers of etcd's that tiles are cut by.
const (
	// passRevisions is how many revisions etcd sends in one go to a watcher
	// that is behind (watchBatchMaxRevs).
	passRevisions = 1000
	// tileRevisions leaves room for the revision before the tile, with which
	// its watcher begins: should etcd be compacted at exactly the tile's first
	// revision, that watcher is cancelled, whereas one that began there could
	// miss a delete (etcd before 3.4.33 and 3.5.15).
	tileRevisions = passRevisions - 1
	// fellBehind is how far the live watcher's last event may be below the
	// revision in the response. One that is up to date is never behind at all;
	// one that is behind by no more than a pass catches up with the next.
	fellBehind = passRevisions + passRevisions/2

	// bigEvent is the average size of an event from which on etcd is asked for
	// fragments. For each event that it adds to a fragment, etcd adds up the
	// sizes of all in it: many small ones (a fragment has about 1.5 MiB) would
	// cost it seconds, and few big ones are what fragments are good for.
	bigEvent = 4 << 10 // bytes

	firstTiles = 4  // open at first, while the size of a tile is not known
	maxTiles   = 64 // one pass fits into etcd's channel for a stream (128 responses)

	// firstMargin is how far beyond the head the live tile begins at first: a
	// round trip's worth of writes. It doubles when that was too little.
	firstMargin = 1000
	maxMargin   = 64 * firstMargin
)

// request asks etcd to create a watcher at a revision, or to cancel one.
type request struct {
	id     int64
	create bool

	// Only if create:
	start    int64 // where the watcher begins
	fragment bool  // big responses come in fragments
}

// tiling decides which watchers there should be, and puts what they deliver
// into order. It has no clock, no network and no goroutine.
//
// Invariant: tiles are adjacent and ascending; only the last may have no end.
type tiling struct {
	tiles  []*tile
	byID   map[int64]*tile // those whose watcher may still deliver
	lastID int64           // ids are never used twice on one stream

	head     int64 // the newest revision of etcd that is known
	frontier int64 // first revision that no tile covers, if the last has an end
	margin   int64

	limit   int   // how many tiles may be open
	budget  int64 // bytes that may be held
	average int64 // bytes of a tile; 0 while not known
	event   int64 // average bytes of an event
	behind  int   // how often the live tile was given up

	out []request
}

// newTiling plans from revision start, of which the events may be incomplete
// (see tile.lenient). Until a tile has come, its events are taken for big if big
// is set.
func newTiling(start, head, budget int64, big bool) *tiling {
	t := &tiling{
		byID:     make(map[int64]*tile),
		head:     head,
		frontier: start,
		margin:   firstMargin,
		limit:    firstTiles,
		budget:   budget,
	}
	if big {
		t.event = bigEvent
	}
	t.add(start, start+passRevisions, start).lenient = true
	return t
}

// add opens a tile at the frontier whose watcher begins at revision from.
func (t *tiling) add(start, end, from int64) *tile {
	n := &tile{id: t.newID(), start: start, end: end, last: start - 1}
	t.tiles = append(t.tiles, n)
	t.byID[n.id] = n
	t.frontier = end
	t.out = append(t.out, request{id: n.id, create: true, start: max(from, 1), fragment: t.event >= bigEvent})
	return n
}

// newID returns an id for a watcher.
func (t *tiling) newID() int64 {
	t.lastID++
	return t.lastID
}

// live reports whether the last tile has no end.
func (t *tiling) live() bool {
	return len(t.tiles) > 0 && t.tiles[len(t.tiles)-1].end == 0
}

// plan returns what to ask of etcd now. The caller sends all of it, in order.
func (t *tiling) plan() []request {
	for !t.live() && len(t.tiles) < t.limit {
		if t.frontier > t.head+t.margin {
			t.add(t.frontier, 0, t.frontier)
		} else {
			t.add(t.frontier, t.frontier+tileRevisions, t.frontier-1)
		}
	}
	out := t.out
	t.out = nil
	return out
}

// heard tells of a revision that etcd has reached.
func (t *tiling) heard(head int64) { t.head = max(t.head, head) }

// next returns the first revision that is not known to be complete.
func (t *tiling) next() int64 {
	next := t.frontier
	for _, tile := range t.tiles {
		if !tile.done {
			return tile.complete() + 1
		}
		next = tile.end
	}
	return next
}

// held returns how many bytes of events wait.
func (t *tiling) held() (n int64) {
	for _, tile := range t.tiles {
		n += tile.held
	}
	return n
}

// ready reports whether take has something to return.
func (t *tiling) ready() bool {
	t.drop()
	return len(t.tiles) > 0 && t.tiles[0].whole > 0
}

// take returns the events of the next revision; nil if it is not whole yet.
func (t *tiling) take() []*mvccpb.Event {
	t.drop()
	if len(t.tiles) == 0 {
		return nil
	}
	return t.tiles[0].take()
}

// drop removes the tiles at the front of which all has been taken.
func (t *tiling) drop() {
	for len(t.tiles) > 0 && t.tiles[0].done && t.tiles[0].whole == 0 {
		t.tiles[0] = nil
		t.tiles = t.tiles[1:]
	}
}

// receive takes a response of the stream. What belongs to no tile any more is
// ignored. After an error the stream is of no use.
func (t *tiling) receive(resp *pb.WatchResponse) error {
	head := resp.Header.GetRevision()
	t.heard(head)
	tile := t.byID[resp.WatchId]
	switch {
	case tile == nil:
		return nil
	case resp.CompactRevision != 0:
		return &compactedError{need: tile.complete() + 1, compacted: resp.CompactRevision}
	case resp.Canceled:
		return &canceledError{reason: resp.CancelReason}
	case resp.Created && tile.end == 0 && head >= tile.start:
		// Not in the future any more when it reached etcd.
		t.margin = min(2*t.margin, maxMargin)
		t.giveUp()
		return nil
	}
	for _, ev := range resp.Events {
		over, err := t.collect(tile, ev)
		if err != nil {
			return err
		}
		if over {
			t.finish(tile)
			return nil
		}
	}
	if resp.Fragment {
		return nil
	}
	tile.whole = len(tile.events)
	switch {
	case tile.end != 0 && tile.last == tile.end-1:
		t.finish(tile)
	case tile.end == 0 && len(resp.Events) > 0 && head-tile.last > fellBehind:
		t.behind++
		t.frontier = tile.last + 1
		tile.end = t.frontier
		t.finish(tile)
	}
	return nil
}

// collect adds an event to its tile. It reports over if the event is beyond the
// tile's end, which makes the tile complete.
func (t *tiling) collect(tile *tile, ev *mvccpb.Event) (over bool, err error) {
	if ev.Kv == nil {
		return false, fmt.Errorf("etcd sent an event without a key")
	}
	rev := ev.Kv.ModRevision
	switch {
	case rev < tile.start:
		return false, nil // the overlap with the tile before
	case tile.end != 0 && rev >= tile.end:
		if tile.last != tile.end-1 {
			return false, &gapError{want: tile.last + 1, got: rev}
		}
		tile.whole = len(tile.events)
		return true, nil
	case rev == tile.last && tile.whole < len(tile.events): // more of the same
	case rev == tile.last+1,
		tile.lenient && tile.last == tile.start-1 && rev == tile.start+1:
		tile.whole = len(tile.events)
		tile.part = 0
	default:
		return false, &gapError{want: tile.last + 1, got: rev}
	}
	tile.last = rev
	n := eventBytes(ev)
	if tile.part += n; tile.part > heliograph.MaxBatchBytes {
		return false, fmt.Errorf("revision %d holds more than %d bytes: %w", rev, heliograph.MaxBatchBytes, errTooBig)
	}
	tile.held += n
	tile.bytes += n
	tile.count++
	tile.events = append(tile.events, ev)
	return false, nil
}

// finish ends a tile whose events have all come, and learns from its size how
// many may be open.
func (t *tiling) finish(tile *tile) {
	tile.done = true
	t.cancel(tile)
	if tile.count > 0 {
		t.event = tile.bytes / tile.count
	}
	if t.average == 0 {
		t.average = max(tile.bytes, 1)
	} else {
		t.average = max((3*t.average+tile.bytes)/4, 1)
	}
	fit := int(min(t.budget/t.average, maxTiles))
	t.limit = max(min(fit, 2*t.limit), 1)
}

// cancel ends a tile's watcher. What it still sends is ignored.
func (t *tiling) cancel(tile *tile) {
	delete(t.byID, tile.id)
	t.out = append(t.out, request{id: tile.id})
}

// giveUp drops the last tile and what it holds; it will be asked for again.
func (t *tiling) giveUp() {
	last := t.tiles[len(t.tiles)-1]
	if !last.done {
		t.cancel(last)
	}
	t.frontier = last.start
	t.tiles = slices.Delete(t.tiles, len(t.tiles)-1, len(t.tiles))
}

// shrink makes room when the budget is used up and nothing can be taken: the
// tiles furthest away give up what they hold, and fewer will be open. The first
// tile is never given up, so there is always a way on.
func (t *tiling) shrink() {
	if t.held() < t.budget {
		return
	}
	t.limit = max(t.limit/2, 1)
	for len(t.tiles) > 1 && t.held() >= t.budget {
		t.giveUp()
	}
}
