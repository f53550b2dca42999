package session

import "slices"

const (
	// maxMarks bounds a window's memory (24 bytes a mark). At the limit, what
	// follows joins the last mark: acknowledged a little later, never lost.
	maxMarks = 4096
	// markMS is how much older than its bytes a mark's time may be.
	markMS = 100
)

// window counts the bytes of entries that are on their way.
//
// Invariants: marks rise in rev; inFlight is the sum of their bytes; full is set
// when inFlight reaches limit and stays until it is below three quarters of it.
type window struct {
	limit    int64
	inFlight int64
	full     bool
	marks    []mark
}

// mark stands for frames sent one after the other.
type mark struct {
	rev   int64 // acknowledged when this revision is
	bytes int64
	atMS  int64 // when the first of them was sent
}

func (w *window) add(rev, bytes, atMS int64) {
	w.inFlight += bytes
	w.full = w.full || w.inFlight >= w.limit
	if n := len(w.marks); n > 0 {
		last := &w.marks[n-1]
		near := atMS-last.atMS < markMS && last.bytes+bytes <= w.limit/1024
		if last.rev == rev || near || n == maxMarks {
			last.rev = rev
			last.bytes += bytes
			return
		}
	}
	w.marks = append(w.marks, mark{rev: rev, bytes: bytes, atMS: atMS})
}

func (w *window) ack(rev int64) {
	n := 0
	for n < len(w.marks) && w.marks[n].rev <= rev {
		w.inFlight -= w.marks[n].bytes
		n++
	}
	w.marks = slices.Delete(w.marks, 0, n)
	if w.inFlight < w.limit-w.limit/4 {
		w.full = false
	}
}
