package source

import (
	"slices"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// leaseCursor is how far a mirror has been told of the origin's leases. It
// belongs to the writer of the mirror's control stream.
type leaseCursor struct {
	replica Replica
	wanted  bool   // the mirror knows the frame
	seq     uint64 // of the replica's changes: told up to here, rest included

	rest  heliograph.LeaseChange // of the change that is being told
	open  bool                   // there are frames of it to come
	first bool                   // the next one is its first
}

func newLeaseCursor(r Replica, features []string) *leaseCursor {
	return &leaseCursor{replica: r, wanted: slices.Contains(features, wire.FeatureLeases)}
}

// always is ready to be received from.
var always = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// look asks for what has changed, unless there is still something to tell.
func (l *leaseCursor) look() {
	if l.open || !l.wanted {
		return
	}
	l.rest, l.seq = l.replica.LeasesSince(l.seq)
	l.open, l.first = !l.rest.Empty(), true
}

// due returns a channel that is ready while there are frames. Frames go out one
// at a time, so that whatever else is ready has its turn between two of them.
func (l *leaseCursor) due() <-chan struct{} {
	if l.open {
		return always
	}
	return nil
}

// next returns the next frame.
func (l *leaseCursor) next() wire.Leases {
	var f wire.Leases
	f, l.rest = wire.CutLeases(l.rest, l.first)
	l.first, l.open = false, f.More
	if !l.open {
		l.rest = heliograph.LeaseChange{}
	}
	return f
}
