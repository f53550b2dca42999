package readapi

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
)

// metrics are what the package counts. Without a registerer they count unseen.
type metrics struct {
	calls              *prometheus.CounterVec
	connections        prometheus.Gauge
	connectionsRefused prometheus.Counter
	readIndexRounds    prometheus.Counter
	readIndexShared    prometheus.Counter
	readIndexFailures  prometheus.Counter
	watchStreams       prometheus.Gauge
	watchEvents        prometheus.Counter
	watchParked        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, b *watchBudget) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "heliograph_readapi_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "heliograph_readapi_" + name, Help: help})
	}
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heliograph_readapi_calls_total", Help: "Calls ended, by full method and status code.",
		}, []string{"method", "code"}),
		connections:        gauge("connections", "Client connections open."),
		connectionsRefused: counter("connections_refused_total", "Client connections closed for being too many."),
		readIndexRounds:    counter("read_index_rounds_total", "Read-index round trips to the source."),
		readIndexShared:    counter("read_index_shared_total", "Linearizable reads that joined another's round trip."),
		readIndexFailures:  counter("read_index_failures_total", "Read-index round trips that failed."),
		watchStreams:       gauge("watch_streams", "Watch streams open."),
		watchEvents:        counter("watch_events_total", "Events handed to watch streams' clients."),
		watchParked:        counter("watch_parked_total", "Times that a watch was parked because its client did not read."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.calls, m.connections, m.connectionsRefused, m.readIndexRounds, m.readIndexShared,
		m.readIndexFailures, m.watchStreams, m.watchEvents, m.watchParked,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "heliograph_readapi_watches", Help: "Watches open; one on a key of many KiB counts as several.",
		}, func() float64 { return float64(b.watches.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "heliograph_readapi_watch_buffered_bytes", Help: "Bytes of events waiting for watch streams' clients.",
		}, func() float64 { return float64(b.used.Load()) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("readapi: register metrics: %w", err)
		}
	}
	return m, nil
}

// called counts a call that ended with a translated error.
func (m *metrics) called(method string, err error) {
	m.calls.WithLabelValues(method, status.Code(err).String()).Inc()
}
