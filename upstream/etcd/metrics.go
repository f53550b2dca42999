package etcd

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what an upstream counts.
type metrics struct {
	revisions     prometheus.Counter
	records       prometheus.Counter
	snapshots     prometheus.Counter
	snapshotBytes prometheus.Counter
	lost          prometheus.Counter
	compared      prometheus.Counter
	fellBehind    prometheus.Counter
	heldBytes     prometheus.Gauge
	watchers      prometheus.Gauge
	leases        prometheus.Counter
	readSeconds   prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "heliograph_etcd_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "heliograph_etcd_" + name, Help: help})
	}
	m := &metrics{
		revisions:     counter("revisions_total", "Revisions applied from etcd's watch."),
		records:       counter("records_total", "Records in the revisions applied from etcd's watch."),
		snapshots:     counter("snapshots_total", "Snapshots of etcd that were installed."),
		snapshotBytes: counter("snapshot_bytes_total", "Bytes of snapshots received from etcd, given up ones included."),
		compared:      counter("compared_revisions_total", "Revisions re-read from etcd when a connection was made, and found equal."),
		lost:          counter("connections_lost_total", "Connections to etcd that ended or could not be made."),
		fellBehind:    counter("watch_fell_behind_total", "Times that the live watch fell behind and the history was read in tiles."),
		leases:        counter("leases_learned_total", "Leases that were learned from etcd, or learned to have gone."),
		heldBytes:     gauge("held_bytes", "Bytes of events that wait for earlier revisions."),
		watchers:      gauge("watchers", "Watchers open on etcd."),
		readSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "heliograph_etcd_read_seconds",
			Help:    "Seconds that linearizable reads of etcd's revision took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.revisions, m.records, m.snapshots, m.snapshotBytes, m.lost, m.compared, m.fellBehind,
		m.heldBytes, m.watchers, m.leases, m.readSeconds,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("config: Metrics: %w", err)
		}
	}
	return m, nil
}
