package certs

import "github.com/prometheus/client_golang/prometheus"

var notAfterDesc = prometheus.NewDesc("heliograph_certs_not_after_seconds",
	"When the node's certificate (kind=leaf) and the CA that signed it (kind=ca) expire, in seconds since 1970.",
	[]string{"kind"}, nil)

// Describe implements [prometheus.Collector]: Credentials that were loaded
// before there was a registry can be registered with it later.
func (c *Credentials) Describe(to chan<- *prometheus.Desc) { to <- notAfterDesc }

// Collect implements [prometheus.Collector].
func (c *Credentials) Collect(to chan<- prometheus.Metric) {
	m := c.current.Load()
	to <- prometheus.MustNewConstMetric(notAfterDesc, prometheus.GaugeValue, float64(m.leafEnd.Unix()), "leaf")
	to <- prometheus.MustNewConstMetric(notAfterDesc, prometheus.GaugeValue, float64(m.caEnd.Unix()), "ca")
}
