package node

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/heliograph/heliograph/promote"
)

// Marks returns how many heads t remembers.
func Marks(t *Tracker) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.marks)
}

// Decide is the decision over who may read.
func Decide(reads Reads, known, enabled bool, cert *x509.Certificate, now time.Time) error {
	return decide(reads, access{known: known, enabled: enabled}, cert, now)
}

// AdminConnections is the limit of a listener of the admin API.
const AdminConnections = adminConnections

// OnPromote replaces what makes an etcd of the replica, until the test ends.
func OnPromote(t *testing.T, f func(context.Context, promote.Config) (promote.Record, error)) {
	before := promoteReplica
	promoteReplica = f
	t.Cleanup(func() { promoteReplica = before })
}
