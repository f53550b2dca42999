package source

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Server. All of them count even when none is registered.
type metrics struct {
	mirrors          prometheus.Gauge
	refusals         *prometheus.CounterVec // by code
	endings          *prometheus.CounterVec // by code
	handshakes       prometheus.Counter
	helloTimeouts    prometheus.Counter
	snapshots        prometheus.Counter
	proven           prometheus.Counter
	unproven         prometheus.Counter
	verifications    prometheus.Counter
	encodedByFeed    prometheus.Counter
	encodedByMirror  prometheus.Counter
	sentFrames       *prometheus.CounterVec // by kind
	sentBytes        *prometheus.CounterVec // by kind
	readIndexes      prometheus.Counter
	readIndexBatches prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var all []prometheus.Collector
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "heliograph", Subsystem: "source", Name: name, Help: help}, labels)
		all = append(all, v)
		return v
	}
	counter := func(name, help string) prometheus.Counter { return counters(name, help).WithLabelValues() }
	encoded := counters("encoded_frames_total", "Entries frames encoded, once for all mirrors at the head (feed) or for one that is behind (mirror).", "by")
	histories := counters("histories_total", "Mirrors that were accepted with data, by whether it was compared with this node's and is equal (proven) or could not be compared (unproven).", "result")
	m := &metrics{
		mirrors:          prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "heliograph", Subsystem: "source", Name: "mirrors", Help: "Mirrors connected."}),
		refusals:         counters("refusals_total", "Connections refused, by code.", "code"),
		endings:          counters("endings_total", "Sessions of accepted mirrors that ended, by code.", "code"),
		handshakes:       counter("failed_handshakes_total", "Connections that failed before they could say hello."),
		helloTimeouts:    counter("hello_timeouts_total", "Connections closed because no hello came in time."),
		snapshots:        counter("snapshots_total", "Snapshots sent to their end."),
		proven:           histories.WithLabelValues("proven"),
		unproven:         histories.WithLabelValues("unproven"),
		verifications:    counter("verifications_total", "Verify requests answered."),
		encodedByFeed:    encoded.WithLabelValues("feed"),
		encodedByMirror:  encoded.WithLabelValues("mirror"),
		sentFrames:       counters("sent_frames_total", "Bulk frames sent.", "kind"),
		sentBytes:        counters("sent_bytes_total", "Bytes of bulk frames sent.", "kind"),
		readIndexes:      counter("read_indexes_total", "Read-index requests answered."),
		readIndexBatches: counter("read_index_batches_total", "Questions to the origin that answered them."),
	}
	all = append(all, m.mirrors)
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range all {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
