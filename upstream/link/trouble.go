package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// ErrDisconnected says that no source is connected just now. It is found with
// [errors.Is]; the error's text says why.
var ErrDisconnected = errors.New("not connected to the source")

// ConfigurationError says that trying again cannot help until somebody changes
// a configuration or a certificate. The link shows it and retries slowly.
type ConfigurationError struct {
	Why string // what is wrong and what to do
	Err error  // what it was found by; may be nil
}

func (e *ConfigurationError) Error() string {
	if e.Err == nil {
		return e.Why
	}
	return e.Why + " (" + e.Err.Error() + ")"
}

func (e *ConfigurationError) Unwrap() error { return e.Err }

// fault is an error that ends a connection, with its name in the metrics and
// what the source is told.
type fault struct {
	reason string
	code   heliograph.Code
	err    error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// behindError says that a source has the history that the mirror's own left: it has
// not followed that promotion yet.
type behindError struct {
	origin string
	fork   heliograph.Fork
}

func (e *behindError) Error() string {
	return fmt.Sprintf("the source has not followed the promotion of %s yet: it holds %.200s, which this mirror's history left at revision %d; "+
		"the mirror goes on when the source, or another that --from names, has followed; or helio resync on the mirror to drop its history and follow that of the source",
		e.fork.Cluster, e.origin, e.fork.Revision)
}

// behind returns a behindError if a source of origin is behind.
func (c *Config) behind(origin string) error {
	if c.Left == nil || origin == "" {
		return nil
	}
	if f, ok := c.Left(origin); ok {
		return &behindError{origin, f}
	}
	return nil
}

// broken says that the source sent what the protocol does not allow.
func broken(format string, args ...any) error {
	return &fault{"protocol", heliograph.CodeProtocol, fmt.Errorf("source broke the protocol: "+format, args...)}
}

// brokenFrame says it of a frame that could not be read or decoded. Errors of
// the connection pass unchanged.
func brokenFrame(t wire.Type, err error) error {
	if _, ok := errors.AsType[*fault](err); ok {
		return err
	}
	for _, of := range []error{wire.ErrMalformed, wire.ErrTooLarge, wire.ErrUnexpected, wire.ErrChecksum, wire.ErrOrder} {
		if errors.Is(err, of) {
			return &fault{"protocol", wire.CodeOf(t, err), fmt.Errorf("source broke the protocol: %w", err)}
		}
	}
	return err
}

// brokenPayload says it of a whole payload: a short one is malformed, too.
func brokenPayload(t wire.Type, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return broken("%w: %w", wire.ErrMalformed, err)
	}
	return brokenFrame(t, err)
}

// local says that the replica failed, not the source.
func local(step string, err error) error {
	return &fault{"replica", heliograph.CodeOK, fmt.Errorf("%s: %w", step, err)}
}

// classify says when to try again after err.
func classify(err error) class {
	if err == nil {
		return none
	}
	if _, ok := errors.AsType[*heliograph.DivergedError](err); ok {
		return fatal
	}
	if _, ok := errors.AsType[*behindError](err); ok {
		return soon
	}
	if r, ok := errors.AsType[*heliograph.RefusedError](err); ok {
		switch {
		case r.Code == heliograph.CodeDiverged:
			return fatal
		case r.Code == heliograph.CodeHistoryGone, r.Code == heliograph.CodeReset:
			return quick
		case r.Code == heliograph.CodeNotReady:
			return soon
		case r.Code.Configuration():
			return slow
		}
		return normal
	}
	if _, ok := errors.AsType[*ConfigurationError](err); ok {
		return slow
	}
	return normal
}

// reason names err in the metrics.
func reason(err error) string {
	c := classify(err)
	if c == fatal {
		return "diverged"
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f.reason
	}
	if _, ok := errors.AsType[*behindError](err); ok {
		return "behind"
	}
	if _, ok := errors.AsType[*overtakenError](err); ok {
		return "overtaken"
	}
	if _, ok := errors.AsType[*heliograph.RefusedError](err); ok {
		return "refused"
	}
	if c == slow {
		return "configuration"
	}
	return "network"
}

// diverged returns the divergence that err tells of, in the source's words or
// in the replica's.
func (l *Link) diverged(err error) *heliograph.DivergedError {
	if d, ok := errors.AsType[*heliograph.DivergedError](err); ok {
		return d
	}
	r, ok := errors.AsType[*heliograph.RefusedError](err)
	if !ok || r.Code != heliograph.CodeDiverged {
		return nil
	}
	why := r.Detail
	if why == "" {
		why = "the source says that this mirror holds another history"
	}
	return &heliograph.DivergedError{Why: why + l.descent()}
}

// descent says, of a source that holds what the replica's history came from, that
// there is no way back; "" of any other. The source cannot know: it was left.
func (l *Link) descent() string {
	r, ok := l.cfg.Replica.(interface{ Lineage() heliograph.Lineage })
	if !ok {
		return ""
	}
	own := r.Lineage()
	if own.Origin.Cluster == l.cfg.Address.Cluster {
		return ""
	}
	for _, f := range slices.Backward(own.Forks) {
		if o, err := heliograph.ParseOrigin(f.Origin); err == nil && o.Cluster == l.cfg.Address.Cluster {
			return fmt.Sprintf(" (what this mirror holds left the history of %s at revision %d, when %s was promoted)", f.Origin, f.Revision, f.Cluster)
		}
	}
	return ""
}

// closeCode is what the source is told when err ends a connection, or the end
// of the link's own ctx. CodeOK means that it is no fault of the source.
func closeCode(ctx context.Context, err error) heliograph.Code {
	f, isFault := errors.AsType[*fault](err)
	switch {
	case classify(err) == fatal:
		return heliograph.CodeDiverged
	case isFault:
		return f.code
	case errors.Is(err, errCycle):
		return heliograph.CodeCycle
	case ctx.Err() != nil:
		return heliograph.CodeShuttingDown
	}
	return heliograph.CodeOK
}

// TLS alerts with which a source turns a certificate of ours down.
var alerts = map[quic.TransportErrorCode]string{
	42:  "it does not accept our certificate: issue one for this node with the source's CA (helio certs issue)",
	43:  "it does not accept our kind of certificate: issue one with helio certs issue",
	44:  "our certificate has been revoked: issue a new one",
	45:  "our certificate has expired: renew it, and check this machine's clock",
	46:  "it does not accept our certificate: issue one for this node with the source's CA (helio certs issue)",
	48:  "our certificate is signed by a CA that it does not know: issue one with the source's CA (helio certs issue)",
	49:  "our certificate has no access: its role must be mirror or relay",
	112: "it is not the cluster that the address names",
	116: "it wants a certificate and we showed none: set --cert and --key",
	120: "it does not speak " + wire.ALPN + ": is that a heliograph data port?",
}

// explain puts what QUIC and TLS say into words, with the way out. peer is the
// address that was dialled.
func explain(peer string, cluster heliograph.ClusterID, err error) error {
	if _, ours := errors.AsType[*fault](err); ours || err == nil {
		return err
	}
	if a, ok := errors.AsType[*quic.ApplicationError](err); ok && a.Remote {
		if a.ErrorCode == 0 || a.ErrorCode > 0xff {
			return fmt.Errorf("%s ended the connection: %w", peer, err)
		}
		return &heliograph.RefusedError{Code: heliograph.Code(a.ErrorCode), Detail: cut(a.ErrorMessage)}
	}
	if why := distrust(cluster, err); why != "" {
		return &ConfigurationError{Why: fmt.Sprintf("%s is not trusted: %s", peer, why), Err: err}
	}
	if t, ok := errors.AsType[*quic.TransportError](err); ok && t.ErrorCode.IsCryptoError() {
		alert := t.ErrorCode - 0x100
		switch {
		case !t.Remote:
			return &ConfigurationError{Why: peer + " is not trusted", Err: err}
		case alerts[alert] != "":
			return &ConfigurationError{Why: peer + " refused us: " + alerts[alert], Err: err}
		}
	}
	if _, ok := errors.AsType[*quic.VersionNegotiationError](err); ok {
		return &ConfigurationError{Why: peer + " speaks another version of QUIC", Err: err}
	}
	if timedOut(err) {
		return fmt.Errorf("no answer from %s: is the source running there, and does the network let UDP through? (%w)", peer, err)
	}
	return err
}

// distrust says why a certificate failed our own checks; "" if it did not.
func distrust(cluster heliograph.ClusterID, err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is signed by a CA that is not in our --ca file: use certificates of one CA on both sides"
	}
	if h, ok := errors.AsType[x509.HostnameError](err); ok {
		names := "no name"
		if h.Certificate != nil && len(h.Certificate.DNSNames) > 0 {
			names = strings.Join(h.Certificate.DNSNames[:min(len(h.Certificate.DNSNames), 4)], ", ")
		}
		return fmt.Sprintf("its certificate is for %s and the address names cluster %s: correct the address, or issue the source a certificate for %s", cut(names), cluster, cluster)
	}
	if c, ok := errors.AsType[x509.CertificateInvalidError](err); ok && c.Reason == x509.Expired {
		return "its certificate is not valid now: renew it, and check the clocks of both machines"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate does not verify"
	}
	return ""
}

// gone reports whether err, of a name that was looked up or an address that was
// dialled, says that nobody has answered. Who refuses us is there, and what fails
// on this machine says nothing.
func gone(err error) bool {
	if classify(err) != normal {
		return false
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op != "listen"
	}
	_, name := errors.AsType[*net.DNSError](err)
	return name || timedOut(err)
}

func timedOut(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// cut bounds a text that comes from the source.
func cut(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), wire.MaxDetailBytes)], "")
}
