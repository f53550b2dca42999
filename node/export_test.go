package node

import (
	"crypto/x509"
	"time"
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
