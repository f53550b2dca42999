package store

import (
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/heliograph/heliograph"
)

// ownUsers returns the access control that the file itself has, of which a watch
// does not tell: as of the snapshot that it came with.
func ownUsers(tx *bolt.Tx) heliograph.AccessControl {
	b := tx.Bucket(schema.Auth.Name())
	if b == nil {
		return heliograph.AccessControl{}
	}
	return heliograph.EtcdAccessControl(b.Get(schema.AuthEnabledKeyName), b.Get(schema.AuthRevisionKeyName))
}

func putAuth(tx backend.BatchTx, a *heliograph.AccessControl) {
	if a != nil {
		tx.UnsafePut(own, authKey, a.Append(nil))
	}
}

// SetAuth notes whether the source has access control on, as heliograph.Replica
// says. [Store.Auth] tells it from now on, though the contents be replaced. It
// waits for an fsync: who was to be refused must not be let in after a crash.
func (s *Store) SetAuth(enabled bool, revision uint64) error {
	now := heliograph.AccessControl{Enabled: enabled, Revision: revision}
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

func (s *Store) writeAuth(a *heliograph.AccessControl) error {
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
	c.loose.Add(1)
	return nil
}

// Auth returns whether the source has access control on, and at which revision
// of its users and roles; known is false if it has not said so yet.
func (s *Store) Auth() (enabled bool, revision uint64, known bool) {
	a := s.auth.Load()
	if a == nil {
		return false, 0, false
	}
	return a.Enabled, a.Revision, true
}

// UsersOutdated returns why the users and roles in the file cannot be taken for
// those of the source, "" if they can; see [heliograph.AccessControl.Outdated].
func (s *Store) UsersOutdated() string {
	c := s.cur.Load()
	if c == nil {
		return ""
	}
	return c.access.Outdated(s.auth.Load())
}
