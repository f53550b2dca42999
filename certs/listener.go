package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ListenerFiles names the PEM files of a listener for programs that are no nodes,
// such as etcd clients. The certificates need no identity; any CA may have made
// them.
type ListenerFiles struct {
	Cert string // the listener's certificate; intermediates may follow it
	Key  string // its private key
	CA   string // every CA of the clients' certificates; "": clients show none
}

// Listener is how a node shows itself to programs that are no nodes. Its methods
// may be called by any goroutine.
type Listener struct {
	files   ListenerFiles
	cfg     Config
	current atomic.Pointer[listenerMaterial] // never nil
}

// listenerMaterial is one set of files that passed every check. It does not change.
type listenerMaterial struct {
	from contents
	conf *tls.Config
	end  time.Time // NotAfter of the certificate
}

// LoadListener reads and checks files: a pair that is valid now, and the CAs, if
// there are any.
func LoadListener(files ListenerFiles, cfg Config) (*Listener, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	l := &Listener{files: files, cfg: cfg}
	from, err := files.read()
	if err != nil {
		return nil, err
	}
	m, err := newListenerMaterial(files, from, time.Now())
	if err != nil {
		return nil, err
	}
	l.current.Store(m)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(l); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return l, nil
}

func (f ListenerFiles) read() (c contents, err error) {
	if c.cert, err = readFile(f.Cert); err != nil {
		return contents{}, fmt.Errorf("certificate file: %w", err)
	}
	if c.key, err = readFile(f.Key); err != nil {
		return contents{}, fmt.Errorf("key file: %w", err)
	}
	if f.CA == "" {
		return c, nil
	}
	if c.ca, err = readFile(f.CA); err != nil {
		return contents{}, fmt.Errorf("CA file: %w", err)
	}
	return c, nil
}

func newListenerMaterial(files ListenerFiles, from contents, now time.Time) (*listenerMaterial, error) {
	chain, err := parseCertificates(files.Cert, from.cert)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(from.cert, from.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are no pair: %w", files.Cert, files.Key, err)
	}
	leaf := chain[0]
	pair.Leaf = leaf
	switch {
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("%s is not valid before %s: check the clock of this machine", files.Cert, stamp(leaf.NotBefore))
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("%s expired at %s: replace it", files.Cert, stamp(leaf.NotAfter))
	}
	conf := &tls.Config{
		MinVersion:   tls.VersionTLS12, // as etcd: clients are not ours to choose
		Certificates: []tls.Certificate{pair},
		// Every connection is verified against the files as they are then.
		SessionTicketsDisabled: true,
	}
	if files.CA != "" {
		var roots *x509.CertPool
		if roots, err = parseRoots(files.CA, from.ca); err != nil {
			return nil, err
		}
		// Who must show one is decided for each call, which can say why not.
		conf.ClientAuth, conf.ClientCAs = tls.VerifyClientCertIfGiven, roots
	}
	return &listenerMaterial{from: from, conf: conf, end: leaf.NotAfter}, nil
}

// TLS returns the listener's configuration. It lives as long as the listener:
// every handshake takes what is current then.
func (l *Listener) TLS() *tls.Config {
	conf := l.current.Load().conf.Clone()
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return l.current.Load().conf, nil
	}
	return conf
}

// Files returns the files that the listener was loaded from.
func (l *Listener) Files() ListenerFiles { return l.files }

// VerifiesClients reports whether clients are asked for certificates.
func (l *Listener) VerifiesClients() bool { return l.files.CA != "" }

// Run reads the files again every Poll until ctx ends, and returns its cause. New
// files that pass the checks of [LoadListener] take effect at the next handshake;
// others are warned of once, and the last good ones stay. At most one Run at a
// time.
func (l *Listener) Run(ctx context.Context) error {
	return l.cfg.keepReading(ctx, l.reload, func(refused error) {
		log := l.cfg.Log.With("not_after", stamp(l.current.Load().end))
		if refused == nil {
			log.Info("certificates for clients reloaded")
		} else {
			log.Warn("new certificates for clients refused, last good ones kept", "err", refused)
		}
	})
}

func (l *Listener) reload() (changed bool, err error) {
	from, err := l.files.read()
	if err != nil {
		return false, err
	}
	if have := l.current.Load().from; from.equal(have) {
		return false, nil
	}
	m, err := newListenerMaterial(l.files, from, time.Now())
	if err != nil {
		return false, err
	}
	l.current.Store(m)
	return true, nil
}

var listenerEndDesc = prometheus.NewDesc("heliograph_certs_clients_not_after_seconds",
	"When the certificate that etcd clients are shown expires, in seconds since 1970.", nil, nil)

// Describe implements [prometheus.Collector].
func (l *Listener) Describe(to chan<- *prometheus.Desc) { to <- listenerEndDesc }

// Collect implements [prometheus.Collector].
func (l *Listener) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(listenerEndDesc, prometheus.GaugeValue, float64(l.current.Load().end.Unix()))
}
