package link

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// maxVerifies bounds the verify requests of one connection that wait for their
// answers; a source takes no more.
const maxVerifies = 4

// verifyAnswer is what one caller waits for.
type verifyAnswer struct {
	reply wire.VerifyReply
	err   error
}

// verifies are the verify requests of one connection.
//
// Invariant: queue holds keys of waiting; open counts those that were sent and
// have no answer, given up or not.
type verifies struct {
	wake func() // tells the writer of the control stream that queue grew

	mu      sync.Mutex
	nextID  uint64
	open    int
	waiting map[uint64]chan verifyAnswer
	queue   []uint64 // not sent yet
	closed  error
}

func newVerifies(wake func()) *verifies {
	return &verifies{wake: wake, waiting: make(map[uint64]chan verifyAnswer)}
}

// ask sends one request and waits for its answer.
func (v *verifies) ask(ctx context.Context) (wire.VerifyReply, error) {
	answer := make(chan verifyAnswer, 1)
	id, err := v.enqueue(answer)
	if err != nil {
		return wire.VerifyReply{}, err
	}
	v.wake()
	select {
	case a := <-answer:
		return a.reply, a.err
	case <-ctx.Done():
		v.mu.Lock()
		delete(v.waiting, id)
		v.queue = slices.DeleteFunc(v.queue, func(queued uint64) bool { return queued == id })
		v.mu.Unlock()
		return wire.VerifyReply{}, context.Cause(ctx)
	}
}

func (v *verifies) enqueue(answer chan verifyAnswer) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed != nil {
		return 0, v.closed
	}
	if v.open+len(v.queue) >= maxVerifies {
		return 0, fmt.Errorf("%d verifications have been asked of the source and not answered", maxVerifies)
	}
	id := v.nextID
	v.nextID++
	v.waiting[id] = answer
	v.queue = append(v.queue, id)
	return id, nil
}

// appendFrames appends the requests that have not been sent.
func (v *verifies) appendFrames(dst []byte) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range v.queue {
		dst = wire.Verify{ID: id}.AppendFrame(dst)
	}
	v.open += len(v.queue)
	v.queue = v.queue[:0]
	return dst
}

// answer passes a reply on. One that nobody waits for any more is dropped; one
// to a question never asked breaks the protocol.
func (v *verifies) answer(reply wire.VerifyReply) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if reply.ID >= v.nextID || v.open == 0 {
		return broken("a reply to verification %d, which was not asked", reply.ID)
	}
	v.open--
	if answer, ok := v.waiting[reply.ID]; ok {
		delete(v.waiting, reply.ID)
		answer <- verifyAnswer{reply: reply}
	}
	return nil
}

// close fails what waits, and all that comes later.
func (v *verifies) close(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = err
	for id, answer := range v.waiting {
		delete(v.waiting, id)
		answer <- verifyAnswer{err: err}
	}
	v.queue = nil
}

// Verify asks the source for etcd's HashKV and its own, at a revision that the
// source chooses. The result says whether those two are equal; that this node's
// is, is for the caller to find out. It waits for the answer, which may take
// minutes, at most Config.VerifyTimeout. Whatever keeps it from being answered is
// a result, too: unknown.
func (l *Link) Verify(ctx context.Context) heliograph.Verification {
	l.mu.Lock()
	s, lost := l.session, l.lost
	l.mu.Unlock()
	switch {
	case s == nil:
		return heliograph.Unverified(fmt.Sprintf("%v: %v", ErrDisconnected, lost))
	case !slices.Contains(s.ack.Features, wire.FeatureVerify):
		return heliograph.Unverified(fmt.Sprintf("%s does not know how to verify: run a newer helio there", s.peer))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.cfg.VerifyTimeout,
		fmt.Errorf("no answer from %s within %s", s.peer, l.cfg.VerifyTimeout))
	defer cancel()
	r, err := s.verifies.ask(ctx)
	switch {
	case err != nil:
		return heliograph.Unverified(err.Error())
	case r.ErrorDetail != "":
		return heliograph.Unverified(cut(r.ErrorDetail))
	case r.LSN < 1:
		return heliograph.Unverified(fmt.Sprintf("%s named no revision", s.peer))
	}
	v := heliograph.Verification{
		Result: heliograph.VerifyEqual, Revision: r.LSN, CompactRevision: r.CompactLSN,
		EtcdHash: r.EtcdHash, EtcdEndpoint: r.Endpoint, Hash: r.Hash,
	}
	if r.Hash != r.EtcdHash {
		v.Result, v.Why = heliograph.VerifyUnequal, fmt.Sprintf("%s does not hold what etcd holds", s.peer)
	}
	return v
}
