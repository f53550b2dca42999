package store

import (
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/backend"
)

// heldBackend commits when it is let go.
type heldBackend struct {
	backend.Backend
	begun chan struct{} // of capacity 1
	end   chan struct{}
}

func (b *heldBackend) ForceCommit() {
	select {
	case b.begun <- struct{}{}:
	default:
	}
	<-b.end
}

// What stands beside the revisions is as durable as they are when commit returns,
// also if it is another's commit that takes it along.
func TestCommitWaitsForTheCommitOfAnother(t *testing.T) {
	be := &heldBackend{begun: make(chan struct{}, 1), end: make(chan struct{})}
	s, c := &Store{}, &contents{be: be}
	var err error
	if s.metrics, err = newMetrics(s); err != nil {
		t.Fatal(err)
	}
	c.loose.Add(1)
	go s.commit(c)
	<-be.begun
	ended := make(chan struct{})
	go func() {
		s.commit(c)
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("commit returned while what it has to make durable was on its way")
	case <-time.After(100 * time.Millisecond):
	}
	close(be.end)
	<-ended
}
