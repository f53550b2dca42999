package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// maxReads bounds the read-index requests of one connection that wait for their
// answers. Further callers wait for a place, as long as their contexts allow.
const maxReads = 1024

// readAnswer is what one caller waits for.
type readAnswer struct {
	rev int64
	err error
}

// reads are the read-index requests of one connection.
//
// Invariant: queue holds requests of waiting, which has those that are not answered
// yet; a nil channel is of one that was sent and that nobody waits for any more. Each
// has a slot, so that the source never has more than maxReads.
type reads struct {
	slots chan struct{}
	wake  func() // tells the writer of the control stream that queue grew

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan readAnswer
	queue   []wire.ReadIndex // not sent yet
	closed  error
}

func newReads(wake func()) *reads {
	return &reads{slots: make(chan struct{}, maxReads), wake: wake, waiting: make(map[uint64]chan readAnswer)}
}

// ask sends one request and waits for its answer.
func (r *reads) ask(ctx context.Context) (int64, error) {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, fmt.Errorf("%d read-index requests are under way: %w", maxReads, context.Cause(ctx))
	}

	answer := make(chan readAnswer, 1)
	r.mu.Lock()
	if err := r.closed; err != nil {
		<-r.slots
		r.mu.Unlock()
		return 0, err
	}
	id := r.nextID
	r.nextID++
	r.waiting[id] = answer
	r.queue = append(r.queue, wire.ReadIndex{ID: id, WaitMS: waitMS(ctx)})
	r.mu.Unlock()
	r.wake()

	select {
	case a := <-answer:
		return a.rev, a.err
	case <-ctx.Done():
		r.giveUp(id)
		return 0, fmt.Errorf("read index: %w", context.Cause(ctx))
	}
}

// waitMS is how long the source has for its answer, in milliseconds; 0 if ctx sets no
// end.
func waitMS(ctx context.Context) uint64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return uint64(max(1, time.Until(deadline).Milliseconds()))
}

// giveUp takes a request back that was not sent. For one that was, the source still
// works.
func (r *reads) giveUp(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[id]; !ok {
		return // answered just now
	}
	i := slices.IndexFunc(r.queue, func(queued wire.ReadIndex) bool { return queued.ID == id })
	if i < 0 {
		r.waiting[id] = nil
		return
	}
	r.queue = slices.Delete(r.queue, i, i+1)
	r.endLocked(id, readAnswer{})
}

// endLocked ends a request, and gives its slot to the next.
func (r *reads) endLocked(id uint64, a readAnswer) {
	answer := r.waiting[id]
	delete(r.waiting, id)
	<-r.slots
	if answer != nil {
		answer <- a
	}
}

// appendFrames appends the requests that have not been sent.
func (r *reads) appendFrames(dst []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range r.queue {
		dst = request.AppendFrame(dst)
	}
	r.queue = r.queue[:0]
	return dst
}

// answer passes a reply on. One that nobody waits for any more is dropped; one
// to a question never asked breaks the protocol.
func (r *reads) answer(reply wire.ReadIndexReply) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if reply.ID >= r.nextID {
		return broken("a reply to read index %d, which was not asked", reply.ID)
	}
	if _, ok := r.waiting[reply.ID]; !ok {
		return nil
	}
	r.endLocked(reply.ID, answerOf(reply))
	return nil
}

func answerOf(reply wire.ReadIndexReply) readAnswer {
	switch {
	case reply.ErrorDetail != "":
		err := fmt.Errorf("the source cannot tell its newest revision: %s", cut(reply.ErrorDetail))
		if reply.Unanswered {
			err = &heliograph.UnansweredError{Err: err}
		}
		return readAnswer{err: err}
	case reply.LSN < 1:
		return readAnswer{err: errors.New("the source does not know its newest revision")}
	}
	return readAnswer{rev: reply.LSN}
}

// close fails what waits, and all that comes later.
func (r *reads) close(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = err
	for id := range r.waiting {
		r.endLocked(id, readAnswer{err: err})
	}
	r.queue = nil
}
