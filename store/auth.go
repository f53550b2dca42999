package store

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/etcd/server/v3/storage/backend"

	"github.com/heliograph/heliograph"
)

// auth is what the source has said of its access control:
//
//	enabled u8, 0 or 1 │ revision u64 BE
type auth struct {
	enabled  bool
	revision uint64
}

const authBytes = 9

func (a auth) encode() []byte {
	b := make([]byte, 1, authBytes)
	if a.enabled {
		b[0] = 1
	}
	return binary.BigEndian.AppendUint64(b, a.revision)
}

// decodeAuth returns nil for what was never written.
func decodeAuth(b []byte) (*auth, error) {
	if b == nil {
		return nil, nil
	}
	if len(b) != authBytes || b[0] > 1 {
		return nil, fmt.Errorf("the note on the source's access control has %d bytes that make no sense", len(b))
	}
	return &auth{enabled: b[0] == 1, revision: binary.BigEndian.Uint64(b[1:])}, nil
}

func putAuth(tx backend.BatchTx, a *auth) {
	if a != nil {
		tx.UnsafePut(own, authKey, a.encode())
	}
}

// SetAuth notes whether the source has access control on, as heliograph.Replica
// says. [Store.Auth] tells it from now on, though the contents be replaced. It
// waits for an fsync: who was to be refused must not be let in after a crash.
func (s *Store) SetAuth(enabled bool, revision uint64) error {
	now := auth{enabled, revision}
	if have := s.auth.Load(); have != nil && *have == now {
		return nil
	}
	s.auth.Store(&now)
	if err := s.writeAuth(&now); err != nil {
		return err
	}
	_, err := s.Commit()
	return err
}

func (s *Store) writeAuth(a *auth) error {
	s.applyMu.Lock() // contents that are being replaced have it, or get it here
	defer s.applyMu.Unlock()
	c := s.cur.Load()
	switch {
	case s.ctx.Err() != nil:
		return heliograph.ErrClosed
	case c == nil:
		return nil // the first snapshot takes it along
	}
	tx := c.be.BatchTx()
	tx.LockOutsideApply()
	putAuth(tx, a)
	tx.Unlock()
	s.loose.Store(true)
	return nil
}

// Auth returns whether the source has access control on, and at which revision
// of its users and roles; known is false if it has not said so yet.
func (s *Store) Auth() (enabled bool, revision uint64, known bool) {
	a := s.auth.Load()
	if a == nil {
		return false, 0, false
	}
	return a.enabled, a.revision, true
}
