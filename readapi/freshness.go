package readapi

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/heliograph/heliograph/readapi/reads"
)

// useSerializable is the advice in every refusal of a linearizable read.
const useSerializable = "serializable reads (etcdctl --consistency=s) are answered from this mirror's data"

// fresh returns when the replica is fresh enough for a read, or why it cannot
// be: after a read index round unless serializable, and as the request's
// metadata demands.
func (s *Server) fresh(ctx context.Context, serializable bool) error {
	if _, err := s.cfg.Replica.KV(); err != nil {
		return err
	}
	want, err := demandsOf(ctx)
	if err != nil {
		return err
	}
	if want.minRev > s.cfg.Replica.Applied() {
		if err := s.waitRevision(ctx, want.minRev); err != nil {
			return err
		}
	}
	if !serializable {
		return s.linearize(ctx)
	}
	if !want.bounded {
		return nil
	}
	age, known := s.cfg.Staleness()
	switch {
	case !known:
		return unavailable("this mirror does not know how old its data is, and the read allows at most %v: read without %s, or from the source, %s",
			want.maxStaleness, reads.MaxStalenessKey, s.cfg.Source())
	case age > want.maxStaleness:
		return unavailable("this mirror's data is %v old and the read allows at most %v: allow more, or read from the source, %s",
			age.Round(time.Millisecond), want.maxStaleness, s.cfg.Source())
	}
	return nil
}

// linearize waits until the replica holds every revision that the source had
// when the call began.
func (s *Server) linearize(ctx context.Context) error {
	if err := s.cfg.UpstreamAlive(); err != nil {
		return unavailable("the source, %s, cannot be reached (%v); %s", s.cfg.Source(), err, useSerializable)
	}
	patient, cancel := patience(ctx, s.cfg.ReadTimeout)
	defer cancel()
	err := s.rounds.wait(patient, s.base)
	if err != nil && patient.Err() != nil && ctx.Err() == nil {
		return unavailable("the source, %s, did not say its revision in time; %s", s.cfg.Source(), useSerializable)
	}
	return err
}

// askAndApply is one read-index round.
func (s *Server) askAndApply(base context.Context) error {
	ctx, cancel := context.WithTimeout(base, s.cfg.ReadTimeout)
	defer cancel()
	rev, err := s.cfg.ReadIndex(ctx)
	switch {
	case base.Err() != nil:
		return errStopping
	case err != nil:
		return unavailable("the source, %s, did not say its revision (%v); %s", s.cfg.Source(), err, useSerializable)
	}
	if err := s.awaitApplied(ctx, rev); err != nil {
		if base.Err() != nil {
			return errStopping
		}
		return unavailable("this mirror has applied revision %d and the source, %s, is at %d; %s",
			s.cfg.Replica.Applied(), s.cfg.Source(), rev, useSerializable)
	}
	return nil
}

// waitRevision waits for rev for as long as the request allows.
func (s *Server) waitRevision(ctx context.Context, rev int64) error {
	patient, cancel := patience(ctx, s.cfg.ReadTimeout)
	defer cancel()
	err := s.awaitApplied(patient, rev)
	if err != nil && ctx.Err() == nil {
		return unavailable("this mirror has applied revision %d, not yet %d, which %s asks for",
			s.cfg.Replica.Applied(), rev, reads.MinRevisionKey)
	}
	return err
}

// awaitApplied returns nil when the replica has applied rev.
func (s *Server) awaitApplied(ctx context.Context, rev int64) error {
	for {
		changed := s.cfg.Replica.Changed()
		if s.cfg.Replica.Applied() >= rev {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.base.Done():
			return errStopping
		}
	}
}

// patience returns a context that ends after limit, or a little before ctx
// does: a sentence that says what is wrong must arrive while the client still
// listens.
func patience(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		limit = min(limit, left-min(left/10, 100*time.Millisecond))
	}
	return context.WithTimeout(ctx, limit)
}

// demands is what a request's metadata asks for.
type demands struct {
	minRev       int64
	maxStaleness time.Duration
	bounded      bool // maxStaleness was set
}

func demandsOf(ctx context.Context) (demands, error) {
	var d demands
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return d, nil
	}
	if v := md.Get(reads.MinRevisionKey); len(v) > 0 {
		rev, err := strconv.ParseInt(v[len(v)-1], 10, 64)
		if err != nil || rev < 0 {
			return d, badMetadata(reads.MinRevisionKey, v[len(v)-1], "a revision in decimal")
		}
		d.minRev = rev
	}
	if v := md.Get(reads.MaxStalenessKey); len(v) > 0 {
		age, err := time.ParseDuration(v[len(v)-1])
		if err != nil || age < 0 {
			return d, badMetadata(reads.MaxStalenessKey, v[len(v)-1], "a duration such as 5s")
		}
		d.maxStaleness, d.bounded = age, true
	}
	return d, nil
}

func badMetadata(key, value, want string) error {
	return status.Errorf(codes.InvalidArgument, "metadata %s is %.40q: want %s", key, value, want)
}

// Why the server ends what it was waiting for.
var (
	errStopping = errors.New("the server is stopping")
	errReplaced = errors.New("the replica's store was replaced")
)
