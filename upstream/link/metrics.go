package link

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are a link's. Several links of one process share a registry by
// registering through prometheus.WrapRegistererWith and a label each.
type metrics struct {
	dials     *prometheus.CounterVec // by result: ok or failed
	connected prometheus.Gauge
	lost      *prometheus.CounterVec // by reason
	refusals  *prometheus.CounterVec // by the source's code
	bytes     *prometheus.CounterVec // of bulk, as sent, by kind: snapshot or entries
	applied   prometheus.Counter
	snapshots *prometheus.CounterVec // by result: installed or aborted
	acks      prometheus.Counter
	readIndex *prometheus.CounterVec // by result: ok or failed
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "heliograph", Subsystem: "link", Name: name, Help: help}
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts(opts(name, help)), []string{label})
	}
	m := &metrics{
		dials:     vec("dials_total", "Connections tried.", "result"),
		connected: prometheus.NewGauge(prometheus.GaugeOpts(opts("connected", "1 while a source is followed."))),
		lost:      vec("lost_total", "Connections that ended or could not be made.", "reason"),
		refusals:  vec("refusals_total", "Refusals and goodbyes of the source.", "code"),
		bytes:     vec("received_bytes_total", "Bulk bytes received, as they were sent.", "kind"),
		applied:   prometheus.NewCounter(prometheus.CounterOpts(opts("applied_revisions_total", "Revisions applied."))),
		snapshots: vec("snapshots_total", "Snapshots received.", "result"),
		acks:      prometheus.NewCounter(prometheus.CounterOpts(opts("acks_total", "Acknowledgements sent."))),
		readIndex: vec("read_index_total", "Read-index requests.", "result"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.dials, m.connected, m.lost, m.refusals, m.bytes, m.applied, m.snapshots, m.acks, m.readIndex,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("link: metrics: %w", err)
		}
	}
	return m, nil
}
