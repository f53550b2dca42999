package source

import (
	"context"
	"sync"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// maxReads bounds the read-index requests of one mirror that wait for an answer.
const maxReads = 1024

// reads gathers read-index requests. All that came before a question to the
// origin was put are answered by it, so a mirror costs one question at a time.
type reads struct {
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []uint64
	open    int // asked and not answered, waiting included
}

func newReads() *reads { return &reads{wake: make(chan struct{}, 1)} }

func (r *reads) ask(id uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open >= maxReads {
		return end(heliograph.CodeProtocol, "more than %d read-index requests at once", maxReads)
	}
	r.open++
	r.waiting = append(r.waiting, id)
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

func (r *reads) take() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := r.waiting
	r.waiting = nil
	return ids
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
		ids := m.reads.take()
		if len(ids) == 0 {
			continue
		}
		rev, err := m.srv.readIndex(ctx)
		for _, id := range ids {
			reply := wire.ReadIndexReply{ID: id, LSN: rev}
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

func (s *Server) readIndex(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadIndexWait)
	defer cancel()
	s.metrics.readIndexBatches.Inc()
	rev, err := s.cfg.ReadIndex(ctx)
	if err != nil {
		return 0, err
	}
	return rev, nil
}
