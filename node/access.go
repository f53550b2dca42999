package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/heliograph/heliograph/readapi"
)

// Reads says whom a node lets read.
type Reads string

// Whom a node lets read. The source's users and roles are not known on a mirror
// yet: as long as the source has access control on, somebody has to say whom to
// trust instead.
const (
	ReadsAsSource          Reads = ""                   // anyone, if the source has access control off
	ReadsAnyone            Reads = "anyone"             // who reaches the listener
	ReadsClientCertificate Reads = "client-certificate" // who shows a certificate of the clients' CA
)

// ParseReads reads what --reads says.
func ParseReads(s string) (Reads, error) {
	switch r := Reads(s); r {
	case ReadsAsSource, ReadsAnyone, ReadsClientCertificate:
		return r, nil
	}
	return "", fmt.Errorf("reads %.40q: want anyone or client-certificate, or nothing for anyone while the source has access control off", s)
}

// Why nobody, or not this caller, may read.
var (
	errSourceHasAuth = errors.New("the source has access control on, and a mirror does not know its users and roles: " +
		"start it with --reads=client-certificate or --reads=anyone to say who may read here")
	errAuthUnknown = fmt.Errorf("whether the source has access control on is %w: it says so when it is reached; "+
		"--reads=anyone or --reads=client-certificate does not ask for it", readapi.ErrUndecided)
	errNoCertificate      = errors.New("this node serves only clients that show a certificate of its --client-ca (--reads=client-certificate)")
	errCertificateExpired = errors.New("the client's certificate has expired: connect with a renewed one")
)

// access is what is known of the source's access control.
type access struct {
	known, enabled bool
}

// decide returns why a caller may not read; cert is the verified one that it has
// shown, nil without. This is the one place that decides: users and roles of the
// source, once a mirror knows them, belong here.
func decide(reads Reads, source access, cert *x509.Certificate, now time.Time) error {
	switch {
	case reads == ReadsAnyone:
		return nil
	case reads == ReadsClientCertificate && cert == nil:
		return errNoCertificate
	case reads == ReadsClientCertificate && now.After(cert.NotAfter):
		return errCertificateExpired
	case reads == ReadsClientCertificate:
		return nil
	case !source.known:
		return errAuthUnknown
	case source.enabled:
		return errSourceHasAuth
	}
	return nil
}

// admit is [readapi.Config.Admit].
func (m *mirroring) admit(ctx context.Context) error {
	err := decide(m.cfg.Reads, m.access(), readapi.ClientCertificate(ctx), time.Now())
	if errors.Is(err, readapi.ErrUndecided) && m.store.Applied() == 0 {
		return fmt.Errorf("this mirror holds no data yet, and %w", err)
	}
	return err
}

func (m *mirroring) access() access {
	enabled, _, known := m.store.Auth()
	return access{known: known, enabled: enabled}
}

// authStatus is [readapi.Config.AuthStatus].
func (m *mirroring) authStatus() (enabled bool, revision uint64) {
	enabled, revision, _ = m.store.Auth()
	return enabled, revision
}

// readsNow says in words whom the node lets read now; "" if it serves no clients.
func (m *mirroring) readsNow() string {
	switch {
	case m.cfg.ListenClients == "":
		return ""
	case m.cfg.Reads != ReadsAsSource:
		return string(m.cfg.Reads)
	}
	if err := decide(m.cfg.Reads, m.access(), nil, time.Now()); err != nil {
		return "refused: " + err.Error()
	}
	return string(ReadsAnyone)
}

// sayReads logs whom the node lets read, at first and whenever it changes, until
// ctx ends.
func (m *mirroring) sayReads(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	said := ""
	for {
		if now := m.readsNow(); now != said {
			said = now
			level := slog.LevelInfo
			if m.cfg.Reads == ReadsAsSource && m.access().enabled {
				level = slog.LevelWarn
			}
			m.cfg.Log.Log(ctx, level, "reads by etcd clients", "reads", now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// checkReads refuses settings that contradict each other.
func (c *Config) checkReads() error {
	if _, err := ParseReads(string(c.Reads)); err != nil {
		return err
	}
	if c.Reads == ReadsClientCertificate && (c.ClientTLS == nil || !c.ClientTLS.VerifiesClients()) {
		return errors.New("--reads=client-certificate needs TLS for clients with a CA: --client-cert, --client-key and --client-ca")
	}
	return nil
}
