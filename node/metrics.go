package node

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/heliograph/heliograph"
)

var statusLabels = []string{"cluster", "database"}

func desc(name, help string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc("heliograph_"+name, help, append(statusLabels, more...), nil)
}

var (
	descState      = desc("state", "1 for the state that the database is in, 0 for the others.", "state")
	descApplied    = desc("applied_revision", "Last revision that readers see.")
	descDurable    = desc("durable_revision", "Last revision that survives a crash.")
	descHead       = desc("head_revision", "Newest revision that the upstream is known to have.")
	descCompact    = desc("compact_revision", "Compaction revision of the replica.")
	descBehind     = desc("behind_revisions", "Revisions between the head and the applied one.")
	descLag        = desc("lag_seconds", "How long the oldest known revision has been waiting to be applied.")
	descStaleness  = desc("staleness_seconds", "How old what readers see may be; -1 if it was never up to date.")
	descDone       = desc("bootstrap_bytes", "Bytes received of the snapshot in progress.")
	descTotal      = desc("bootstrap_total_bytes", "Size of the snapshot in progress; 0 if not known.")
	descVerified   = desc("verified_revision", "Revision of the last verification that proved equality; 0 if there was none.")
	descVerifyAge  = desc("verified_age_seconds", "How long ago the last verification proved equality; -1 if none ever did.")
	descDownstream = desc("downstream_lag_seconds", "How long the oldest revision that a mirror has not applied has been on its way.", "mirror")
)

// statusCollector turns the status into metrics at each scrape.
type statusCollector struct{ node *Node }

// Describe implements [prometheus.Collector].
func (c statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descState, descApplied, descDurable, descHead, descCompact, descBehind,
		descLag, descStaleness, descDone, descTotal, descVerified, descVerifyAge, descDownstream,
	} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.node.Status() {
		labels := []string{string(s.Cluster), string(s.Name)}
		gauge := func(d *prometheus.Desc, v float64, more ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append(labels[:2:2], more...)...)
		}
		for state := heliograph.Disconnected; state <= heliograph.Promoted; state++ {
			in := 0.0
			if s.Status == state {
				in = 1
			}
			gauge(descState, in, state.String())
		}
		gauge(descApplied, float64(s.AppliedRevision))
		gauge(descDurable, float64(s.DurableRevision))
		gauge(descHead, float64(s.HeadRevision))
		gauge(descCompact, float64(s.CompactRevision))
		gauge(descBehind, float64(s.BehindRevisions))
		gauge(descLag, float64(s.LagMS)/1000)
		gauge(descStaleness, max(-1, float64(s.StalenessMS)/1000))
		gauge(descDone, float64(s.BytesDone))
		gauge(descTotal, float64(s.BytesTotal))
		gauge(descVerified, float64(s.LastVerifiedRevision))
		age := -1.0
		if !s.LastVerifiedAt.IsZero() {
			age = time.Since(s.LastVerifiedAt).Seconds()
		}
		gauge(descVerifyAge, age)
		seen := make(map[string]bool)
		for _, d := range s.Downstreams {
			// Two connections of one mirror overlap while it reconnects.
			if name := string(d.Cluster) + "/" + d.Name; !seen[name] {
				seen[name] = true
				gauge(descDownstream, float64(d.LagMS)/1000, name)
			}
		}
	}
}

// newCounters registers what the node itself counts.
func newCounters(reg prometheus.Registerer) (verifications *prometheus.CounterVec, resynced prometheus.Counter) {
	verifications = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "heliograph_verifications_total", Help: "Verifications, by result: what could not be done is unknown.",
	}, []string{"result"})
	for _, r := range []heliograph.VerifyResult{heliograph.VerifyEqual, heliograph.VerifyUnequal, heliograph.VerifyUnknown} {
		verifications.WithLabelValues(string(r))
	}
	resynced = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "heliograph_resyncs_total", Help: "Times that the replica was dropped to bootstrap anew.",
	})
	reg.MustRegister(verifications, resynced)
	return verifications, resynced
}

// registries gathers the metrics of the node and those of its phase, which can be
// registered anew when a phase begins again.
type registries struct {
	lasting *prometheus.Registry
	phase   atomic.Pointer[prometheus.Registry] // nil between phases
}

func newRegistries() *registries { return &registries{lasting: prometheus.NewRegistry()} }

func (r *registries) enter(phase *prometheus.Registry) { r.phase.Store(phase) }

func (r *registries) leave(phase *prometheus.Registry) { r.phase.CompareAndSwap(phase, nil) }

// Gather implements [prometheus.Gatherer].
func (r *registries) Gather() ([]*dto.MetricFamily, error) {
	all := prometheus.Gatherers{r.lasting}
	if phase := r.phase.Load(); phase != nil {
		all = append(all, phase)
	}
	return all.Gather()
}
