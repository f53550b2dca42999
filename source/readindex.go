package source

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// maxReads bounds the read-index requests of one mirror that wait for an answer.
const maxReads = 1024

// maxReadIndexWait bounds how long a mirror may wait for an answer.
const maxReadIndexWait = 5 * time.Minute

// question is a read-index request.
type question struct {
	id    uint64
	until time.Time // when there has to be an answer
}

// reads gathers read-index requests. All that came before a question to the
// origin was put are answered by it, so a mirror costs one question at a time.
type reads struct {
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []question
	open    int // asked and not answered, waiting included
}

func newReads() *reads { return &reads{wake: make(chan struct{}, 1)} }

func (r *reads) ask(q question) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open >= maxReads {
		return end(heliograph.CodeProtocol, "more than %d read-index requests at once", maxReads)
	}
	r.open++
	r.waiting = append(r.waiting, q)
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

func (r *reads) take() []question {
	r.mu.Lock()
	defer r.mu.Unlock()
	questions := r.waiting
	r.waiting = nil
	return questions
}

func (r *reads) answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
}

// answerReads answers the mirror's read-index requests.
func (m *mirror) answerReads(ctx context.Context) error {
	for {
		select {
		case <-m.reads.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		questions := m.reads.take()
		if len(questions) == 0 {
			continue
		}
		rev, err := m.srv.readIndex(ctx, questions)
		_, unanswered := errors.AsType[*heliograph.UnansweredError](err)
		for _, q := range questions {
			reply := wire.ReadIndexReply{ID: q.id, LSN: rev, Unanswered: unanswered}
			if err != nil {
				reply.ErrorDetail = err.Error()
			}
			// Before the reply is out: a mirror that has it may ask again.
			m.reads.answered()
			if err := m.control.post(ctx, reply); err != nil {
				return err
			}
			m.srv.metrics.readIndexes.Inc()
		}
	}
}

// readIndex asks the origin, for as long as the most patient question allows.
func (s *Server) readIndex(ctx context.Context, questions []question) (int64, error) {
	var until time.Time
	for _, q := range questions {
		if q.until.After(until) {
			until = q.until
		}
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	s.metrics.readIndexBatches.Inc()
	rev, err := s.cfg.ReadIndex(ctx)
	if err != nil {
		return 0, err
	}
	return rev, nil
}

// question returns what a request asks. What the node itself asks further up has to
// end before the mirror stops waiting, or nobody would hear of it.
func (s *Server) question(r wire.ReadIndex) question {
	wait := s.cfg.ReadIndexWait
	if r.WaitMS > 0 {
		wait = time.Duration(min(r.WaitMS, uint64(maxReadIndexWait.Milliseconds()))) * time.Millisecond
		wait -= wait / 10
	}
	return question{id: r.ID, until: time.Now().Add(wait)}
}
