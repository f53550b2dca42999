package node

import (
	"fmt"

	"github.com/heliograph/heliograph"
)

// A mirror that is pointed at another source cluster, because its own was lost and
// another was promoted, keeps what it holds until the new source has accepted it and
// the replica is part of that source's history. Only then does the data directory
// belong to the new cluster: a mistake in --from must not cost the data.

// movedFrom returns the cluster that the replica was last proven to follow, if --from
// names another one now; "" if it does not.
func (m *mirroring) movedFrom() heliograph.ClusterID {
	if m.cfg.From == nil {
		return ""
	}
	if was := m.node.dir.follows(); was != m.cfg.From.Cluster {
		return was
	}
	return ""
}

// joined hears from the link that the replica follows the cluster that --from names.
func (m *mirroring) joined() {
	was, err := m.node.dir.follow(m.cfg.From.Cluster)
	switch {
	case err != nil:
		// The next connection tries again; until then a divergence is taken for
		// that of a mistaken --from, which costs nothing.
		m.cfg.Log.Warn("new source cluster not noted in the data directory", "cluster", m.cfg.Cluster, "was", was, "source", m.cfg.From.Cluster, "err", err)
	case was != m.cfg.From.Cluster:
		m.cfg.Log.Info("source cluster changed", "cluster", m.cfg.Cluster, "was", was, "source", m.cfg.From.Cluster,
			"rev", m.store.Applied(), "origin", m.store.Origin().String())
	}
}

// left returns the fork at which the replica's history left that of origin: a mirror
// does not go back over it by itself, also when it has dropped what it held. Who
// points it at another cluster may mean just that, and is told of the divergence.
func (m *mirroring) left(origin string) (heliograph.Fork, bool) {
	if m.movedFrom() != "" {
		return heliograph.Fork{}, false
	}
	l := m.store.Lineage()
	if l.Origin.IsZero() {
		l = m.dropped
	}
	return l.LeftAt(origin)
}

// ofMove adds to a divergence that the mirror was pointed at another cluster, if it
// was: then that may be the mistake.
func (m *mirroring) ofMove(d *heliograph.DivergedError) *heliograph.DivergedError {
	was := m.movedFrom()
	if was == "" {
		return d
	}
	return &heliograph.DivergedError{Rev: d.Rev, Why: fmt.Sprintf("%s; this mirror has followed cluster %s so far and --from names %s now: "+
		"if that is a mistake, correct --from, nothing was dropped", d.Why, was, m.cfg.From.Cluster)}
}
