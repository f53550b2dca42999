package store

import (
	"encoding/binary"
	"errors"

	"github.com/heliograph/heliograph"
)

// The note that a verification has found the contents unequal:
//
//	revision u64 BE │ why, as in heliograph.DivergedError

func encodeUnequal(d *heliograph.DivergedError) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(d.Rev)), d.Why...)
}

// decodeUnequal returns nil for what was never written.
func decodeUnequal(b []byte) (*heliograph.DivergedError, error) {
	if b == nil {
		return nil, nil
	}
	if len(b) <= 8 {
		return nil, errors.New("the note on a verification that found a difference is cut off")
	}
	return &heliograph.DivergedError{Rev: int64(binary.BigEndian.Uint64(b)), Why: string(b[8:])}, nil
}

// SetUnequal notes that a verification has found the contents of that generation to
// differ from etcd's. It waits for an fsync: what is known to be wrong must not be
// followed, promoted or exported after a restart. Only [Store.Reset] takes the note
// away, together with the contents. If there are other contents by now, that is an
// error, and nothing is noted.
func (s *Store) SetUnequal(generation int64, d *heliograph.DivergedError) error {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	c := s.cur.Load()
	switch {
	case s.ctx.Err() != nil:
		return heliograph.ErrClosed
	case c == nil || s.generation.Load() != generation:
		return errReplaced
	}
	tx := c.be.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafePut(own, unequalKey, encodeUnequal(d))
	tx.Unlock()
	c.loose.Add(1)
	s.commit(c)
	c.unequal.Store(d)
	return nil
}

// Unequal returns what [Store.SetUnequal] has noted of the contents; nil if nothing.
func (s *Store) Unequal() *heliograph.DivergedError {
	if c := s.cur.Load(); c != nil {
		return c.unequal.Load()
	}
	return nil
}
