package heliograph

import "fmt"

// Lineage says how a history came about: which etcd it is of now, and where it
// left others before.
//
//	Forks[0].Origin ──► Forks[1].Origin ──► … ──► Origin
type Lineage struct {
	Origin Origin
	Forks  []Fork // oldest first, at most MaxForks; not to be changed
}

// Admit decides whether a replica that holds origin up to revision rev can go on
// with this history. It returns the forks that lead from that origin to this one,
// the first of which left it; none if it is the same.
//
// What a list says can be wrong, by mistake or by intent: it does not replace a
// comparison of what both hold.
func (l Lineage) Admit(origin string, rev int64) ([]Fork, *DivergedError) {
	if origin == l.Origin.String() {
		return nil, nil
	}
	forks := l.since(origin)
	if len(forks) == 0 {
		return nil, &DivergedError{Why: fmt.Sprintf("the mirror holds %.200s and the source %s, and no promotion is known that leads from the one to the other: "+
			"follow a source of the history that the mirror holds, or helio resync on the mirror to drop that and follow %s", origin, l.Origin, l.Origin.Cluster)}
	}
	if left := Left(forks); rev > left.Revision {
		return nil, &DivergedError{Rev: left.Revision + 1, Why: fmt.Sprintf("the mirror has followed %.200s up to revision %d, and %s left that at revision %d, when it was promoted: "+
			"what each has from there on is its own; follow a source of %.200s again, or helio resync on the mirror to drop that and follow %s",
			origin, rev, l.Origin, left.Revision, origin, l.Origin.Cluster)}
	}
	return forks, nil
}

// since returns the forks from the one on at which the history left origin; nil if
// it is not known to have left that.
func (l Lineage) since(origin string) []Fork {
	for i, f := range l.Forks {
		if f.Origin == origin {
			return l.Forks[i:]
		}
	}
	return nil
}

// LeftAt returns the fork at which this history left that of origin; false if it is
// that one, or is not known to have left it.
func (l Lineage) LeftAt(origin string) (Fork, bool) {
	forks := l.since(origin)
	if len(forks) == 0 || origin == l.Origin.String() {
		return Fork{}, false
	}
	return forks[0], true
}

// Left returns the fork that bounds what the first history of a list of forks has in
// common with the last. It is not always the first fork: a mirror that followed a
// promoted cluster and was promoted itself before it had come as far as that fork
// left both histories at once. The list must not be empty.
func Left(forks []Fork) Fork {
	least := forks[0]
	for _, f := range forks[1:] {
		if f.Revision < least.Revision {
			least = f
		}
	}
	return least
}

// Adopt returns the lineage of a replica that goes on with the history of to, whose
// forks are those that Admit returned.
func (l Lineage) Adopt(to Origin, forks []Fork) Lineage {
	if len(forks) == 0 {
		return l
	}
	own := l.Forks
	for i, f := range own {
		if f.Origin == forks[0].Origin {
			own = own[:i] // known already
			break
		}
	}
	all := append(own[:len(own):len(own)], forks...)
	return Lineage{Origin: to, Forks: all[max(0, len(all)-MaxForks):]}
}
