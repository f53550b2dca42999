package readapi

import (
	"context"
	"errors"
	"sync"
)

// stream is one streaming call that the server may end by itself.
type stream struct {
	endless     bool // it does not end by itself when the server stops
	needsLeader bool // it ends while the source is out of reach
	// admitted is the call's context, by which it is decided again whether the
	// caller may stay; nil if everyone may.
	admitted context.Context //nolint:containedctx // it identifies the caller
	cancel   context.CancelCauseFunc
}

// streams knows the streaming calls under way.
type streams struct {
	mu   sync.Mutex
	open map[*stream]struct{}
	over error // why new ones of the endless kind end at once; nil before shut-down
}

func newStreams() *streams { return &streams{open: make(map[*stream]struct{})} }

// begin returns a stream and its context, not yet known to end.
func (s *streams) begin(ctx context.Context) (context.Context, *stream) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &stream{cancel: cancel}
}

func (s *streams) add(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[st] = struct{}{}
	if s.over != nil && st.endless {
		st.cancel(s.over)
	}
}

func (s *streams) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st)
}

// end cancels the open streams that which picks, for the reason why, and
// returns how many. After errStopping, endless streams end as they begin.
func (s *streams) end(why error, which func(*stream) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(why, errStopping) {
		s.over = why
	}
	for st := range s.open {
		if which(st) {
			st.cancel(why)
			n++
		}
	}
	return n
}

// recheck cancels the open streams whose callers permit no longer lets in, and
// returns how many. permit must be quick.
func (s *streams) recheck(permit func(context.Context) error) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.open {
		if st.admitted == nil {
			continue
		}
		if err := permit(st.admitted); err != nil {
			st.cancel(err)
			n++
		}
	}
	return n
}
