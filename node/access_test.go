package node_test

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/readapi"
)

// Who may read, by what was set, what the source says, and what the caller shows.
func TestDecide(t *testing.T) {
	now := time.Now()
	shown := &x509.Certificate{NotAfter: now.Add(time.Hour)}
	expired := &x509.Certificate{NotAfter: now.Add(-time.Second)}
	const off, on, unknown = "off", "on", "unknown"
	for _, test := range []struct {
		reads  node.Reads
		source string
		cert   *x509.Certificate
		want   string // part of the refusal; "" is none
	}{
		{"", off, nil, ""},
		{"", off, shown, ""},
		{"", on, nil, "--reads=client-certificate or --reads=anyone"},
		{"", on, shown, "access control on"},
		{"", unknown, nil, "--reads=anyone"},
		{"anyone", off, nil, ""},
		{"anyone", on, nil, ""},
		{"anyone", unknown, nil, ""},
		{"client-certificate", off, nil, "--client-ca"},
		{"client-certificate", on, nil, "--reads=client-certificate"},
		{"client-certificate", on, shown, ""},
		{"client-certificate", unknown, shown, ""},
		{"client-certificate", off, expired, "expired"},
	} {
		err := node.Decide(test.reads, test.source != unknown, test.source == on, test.cert, now)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q, access control %s, certificate %v: %v", test.reads, test.source, test.cert != nil, err)
		}
		if errors.Is(err, readapi.ErrUndecided) != (test.reads == "" && test.source == unknown) {
			t.Errorf("%q, access control %s: undecided: %v", test.reads, test.source, err)
		}
	}
}

func TestReadsThatCannotBe(t *testing.T) {
	p := newPKI(t)
	cfg := p.source(t, nobody)
	cfg.Reads = "client-certificate"
	if _, err := node.Open(cfg); err == nil || !strings.Contains(err.Error(), "--client-ca") {
		t.Errorf("without a CA: %v", err)
	}
	cfg.Reads = "everyone"
	if _, err := node.Open(cfg); err == nil || !strings.Contains(err.Error(), "want anyone or client-certificate") {
		t.Errorf("unknown: %v", err)
	}
}
