package source

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
	"github.com/heliograph/heliograph/wire"
)

const (
	// frameBytes is what a frame of entries holds before the next one begins,
	// uncompressed: enough to compress well, little enough to be quick.
	frameBytes = 256 << 10
	// pageBytes bounds what one look into the history keeps. It matters only
	// within a revision larger than this, which is read again for every page.
	pageBytes = 8 << 20
	// keepBytes is the largest buffer that is kept for the next page.
	keepBytes = 1 << 20
)

// errPause ends a visit that has gathered enough.
var errPause = errors.New("page is full")

// frame is one encoded frame of entries.
type frame struct {
	from, to session.Cursor // its first record, and the one behind its last
	data     []byte
}

// cost returns the bytes that keeping the frame takes.
func (f frame) cost() int { return len(f.data) + 64 }

// reader turns history into frames. It is not safe for concurrent use.
type reader struct {
	replica Replica
	encoded prometheus.Counter
	pack    wire.Compressor
	parts   []*part // of the page
	buf     []byte  // of the frame handed out last
}

// part is a frame that is still to be encoded.
type part struct {
	from, to session.Cursor
	records  wire.EntriesEncoder
}

// read gathers the records from a cursor on and returns how many frames they
// make: 0 if there are none yet. With stop > 0 it ends before revision stop.
// Nothing is compressed here: the replica holds a lock meanwhile.
func (r *reader) read(from session.Cursor, stop int64) (int, error) {
	r.parts = r.parts[:0]
	gathered, next, paused := 0, from, false
	last, err := r.replica.History(from.Rev, frameBytes, func(key, value []byte) error {
		k, err := heliograph.ParseRevisionKey(key)
		if err != nil {
			return err
		}
		at := session.Cursor{Rev: k.Main, Sub: k.Sub}
		if at.Before(from) {
			return nil // sent with an earlier page
		}
		if at != next && (gathered == 0 || at != session.Cursor{Rev: next.Rev + 1}) {
			return fmt.Errorf("history goes on with %s instead of %s", at, next)
		}
		if gathered >= pageBytes || stop > 0 && at.Rev >= stop {
			next, paused = at, true
			return errPause
		}
		size := len(key) + len(value)
		p := r.lastPart()
		if p == nil || p.records.RawBytes() > 0 && p.records.RawBytes()+size > frameBytes {
			p = r.addPart(at)
		}
		gathered += size
		next = session.Cursor{Rev: at.Rev, Sub: at.Sub + 1}
		return p.records.Add(key, value)
	})
	switch {
	case paused && errors.Is(err, errPause):
		// The replica need not have looked again after an error of ours.
		if r.replica.Floor() >= from.Rev {
			return 0, heliograph.ErrCompacted
		}
	case err != nil:
		return 0, err
	case gathered == 0:
		return 0, nil
	case last != next.Rev:
		return 0, fmt.Errorf("history up to revision %d ended at %s", last, next)
	default:
		next = session.Cursor{Rev: last + 1}
	}
	if p := r.lastPart(); p != nil {
		p.to = next
	}
	return len(r.parts), nil
}

func (r *reader) lastPart() *part {
	if len(r.parts) == 0 {
		return nil
	}
	return r.parts[len(r.parts)-1]
}

// addPart begins a part at a cursor, where the one before ends. It uses again
// what an earlier page left.
func (r *reader) addPart(at session.Cursor) *part {
	if p := r.lastPart(); p != nil {
		p.to = at
	}
	n := len(r.parts)
	if n < cap(r.parts) && r.parts[:n+1][n] != nil {
		r.parts = r.parts[:n+1]
	} else {
		r.parts = append(r.parts, new(part))
	}
	p := r.parts[n]
	p.from = at
	p.records.Reset()
	return p
}

// encode encodes frame i of the page; each once, in order. Its data is valid
// until the next call.
func (r *reader) encode(i int) frame {
	p := r.parts[i]
	f := frame{from: p.from, to: p.to}
	head := max(r.replica.Applied(), p.to.Whole())
	if cap(r.buf) > keepBytes {
		r.buf = nil
	}
	large := p.records.RawBytes() > keepBytes
	r.buf = p.records.AppendFrame(r.buf[:0], head, p.to.Sub > 0, &r.pack)
	f.data = r.buf
	if large || i > 1 {
		r.parts[i] = nil // of a large revision, which is rare
	}
	r.encoded.Inc()
	return f
}
