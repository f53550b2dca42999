package store

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the store's, each labelled with the database.
type metrics struct {
	reg  prometheus.Registerer
	list []prometheus.Collector

	records     prometheus.Counter
	bytes       prometheus.Counter
	divergences prometheus.Counter
	compactions prometheus.Counter
	received    prometheus.Counter
	unproven    prometheus.Counter
	resets      prometheus.Counter
	adoptions   prometheus.Counter
	spooled     prometheus.Counter
	commits     prometheus.Histogram
}

func newMetrics(s *Store) (*metrics, error) {
	m := &metrics{}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "heliograph_store_" + name, Help: help})
		m.list = append(m.list, c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		m.list = append(m.list, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "heliograph_store_" + name, Help: help}, f))
	}
	m.records = counter("applied_records_total", "Records applied.")
	m.bytes = counter("applied_bytes_total", "Bytes of the records applied, keys and values.")
	m.divergences = counter("divergences_total", "Batches refused because they cannot belong to this history.")
	m.compactions = counter("compactions_total", "Compactions begun.")
	m.received = counter("snapshots_received_total", "Snapshots that replaced the contents.")
	m.unproven = counter("snapshots_unproven_total", "Snapshots that share no record with what they replaced.")
	m.resets = counter("resets_total", "Times that the contents were dropped for a resync.")
	m.adoptions = counter("adoptions_total", "Times that the history of a promoted cluster was gone on with, without a snapshot.")
	m.spooled = counter("snapshots_spooled_total", "Copies made to be handed down.")
	m.commits = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "heliograph_store_commit_seconds", Help: "Time that a commit takes, fsync included.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
	})
	m.list = append(m.list, m.commits)
	gauge("applied_revision", "The last applied revision.", func() float64 { return float64(s.Applied()) })
	gauge("durable_revision", "The last revision that a crash cannot take back.", func() float64 { return float64(s.Durable()) })
	gauge("compact_revision", "The compaction revision.", func() float64 { return float64(s.Compacted()) })
	gauge("size_bytes", "Size of the database file.", func() float64 { total, _ := s.Size(); return float64(total) })
	gauge("size_in_use_bytes", "Bytes of the database file that hold data.", func() float64 { _, used := s.Size(); return float64(used) })

	if s.cfg.Metrics == nil {
		return m, nil
	}
	m.reg = prometheus.WrapRegistererWith(prometheus.Labels{"database": string(s.cfg.Database)}, s.cfg.Metrics)
	for i, c := range m.list {
		if err := m.reg.Register(c); err != nil {
			m.list = m.list[:i]
			m.unregister()
			return nil, fmt.Errorf("store: metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) applied(records int, bytes int64) {
	m.records.Add(float64(records))
	m.bytes.Add(float64(bytes))
}

// unregister lets the database be opened again under the same registerer.
func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.list {
		m.reg.Unregister(c)
	}
}
