package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/heliograph/heliograph"
)

// material is one set of files that passed every check. It does not change.
type material struct {
	from     contents
	identity heliograph.Identity
	cert     tls.Certificate // Leaf is set
	roots    *x509.CertPool
	leafEnd  time.Time // NotAfter of the leaf
	caEnd    time.Time // NotAfter of what signed it
}

// newMaterial checks files as they would be used at now. Each failure is a
// sentence of its own that says what to do.
// With dialled, it must be good for a node that others dial whatever its role.
func newMaterial(files Files, from contents, dialled bool, now time.Time) (*material, error) {
	certs, err := parseCertificates(files.Cert, from.cert)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if leaf.IsCA {
		return nil, fmt.Errorf("%s is the certificate of a CA: use the one that was issued for this node", files.Cert)
	}
	pair, err := tls.X509KeyPair(from.cert, from.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are no pair: %w; issue them again, or put the two files of one issue together",
			files.Cert, files.Key, err)
	}
	pair.Leaf = leaf
	identity, err := IdentityOf(leaf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; issue it with helio certs issue", files.Cert, err)
	}
	if now.Before(leaf.NotBefore) {
		return nil, fmt.Errorf("%s is not valid before %s: check the clock of this machine", files.Cert, stamp(leaf.NotBefore))
	}
	if now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("%s expired at %s: issue it again", files.Cert, stamp(leaf.NotAfter))
	}
	roots, err := parseRoots(files.CA, from.ca)
	if err != nil {
		return nil, err
	}
	if dialled = dialled || identity.Role.Serves(); dialled && identity.Role == heliograph.RoleOperator {
		return nil, fmt.Errorf("%s is for an operator, whom nobody dials: use the certificate of a node", files.Cert)
	}
	chains, err := verifyLeaf(files, identity, dialled, certs, roots, now)
	if err != nil {
		return nil, err
	}
	if dialled {
		if err := leaf.VerifyHostname(string(identity.Cluster)); err != nil {
			return nil, fmt.Errorf("%s does not carry its cluster %q as a DNS name, by which it will be dialled: issue it again",
				files.Cert, identity.Cluster)
		}
	}
	signers := make([][]*x509.Certificate, len(chains))
	for i, chain := range chains {
		signers[i] = chain[1:]
	}
	return &material{
		from:     from,
		identity: identity,
		cert:     pair,
		roots:    roots,
		leafEnd:  leaf.NotAfter,
		caEnd:    chainsEnd(signers),
	}, nil
}

// notAfter returns when a peer stops to accept this certificate.
func (m *material) notAfter() time.Time {
	if m.caEnd.Before(m.leafEnd) {
		return m.caEnd
	}
	return m.leafEnd
}

func parseRoots(path string, data []byte) (*x509.CertPool, error) {
	certs, err := parseCertificates(path, data)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for i, cert := range certs {
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, fmt.Errorf("%s: certificate %d is not a CA: use the ca.crt that helio certs init wrote", path, i+1)
		}
		roots.AddCert(cert)
	}
	return roots, nil
}

// verifyLeaf verifies certs[0], whose own dates were checked, for dialling and,
// with dialled, for being dialled, and returns its chains.
func verifyLeaf(files Files, identity heliograph.Identity, dialled bool, certs []*x509.Certificate, roots *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	var chains [][]*x509.Certificate
	for _, usage := range usages(dialled) {
		var err error
		chains, err = certs[0].Verify(x509.VerifyOptions{
			Roots:         roots,
			Intermediates: between,
			CurrentTime:   now,
			KeyUsages:     []x509.ExtKeyUsage{usage},
		})
		if err == nil {
			continue
		}
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
			return nil, fmt.Errorf("%s is not signed by a CA in %s: use the CA that issued it, or issue it again", files.Cert, files.CA)
		}
		invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
		switch {
		case invalid.Cert != nil && invalid.Reason == x509.Expired:
			return nil, fmt.Errorf("the CA that signed %s is not valid at %s: put a newer CA into %s and issue the certificate again",
				files.Cert, stamp(now), files.CA)
		case invalid.Cert != nil && invalid.Reason == x509.IncompatibleUsage:
			return nil, fmt.Errorf("%s lacks the extended key usage for %s: issue it again with helio certs issue --cluster %s --role %s --name %s",
				files.Cert, usedFor[usage], identity.Cluster, identity.Role, identity.Name)
		}
		return nil, fmt.Errorf("%s is refused by %s: %w", files.Cert, files.CA, err)
	}
	return chains, nil
}

// usages returns what a certificate is used for: all nodes and operators dial, and
// most nodes are dialled.
func usages(dialled bool) []x509.ExtKeyUsage {
	if dialled {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

// usedFor says in words what a usage is for.
var usedFor = map[x509.ExtKeyUsage]string{
	x509.ExtKeyUsageClientAuth: "dialling (client authentication)",
	x509.ExtKeyUsageServerAuth: "being dialled (server authentication), as by mirrors or at --listen-admin-tls",
}

// IdentityOf returns the identity in a certificate's only URI SAN. It does not say
// whether the certificate is to be believed.
func IdentityOf(cert *x509.Certificate) (heliograph.Identity, error) {
	if len(cert.URIs) != 1 {
		return heliograph.Identity{}, fmt.Errorf("certificate has %d URI SANs: want exactly one, its identity", len(cert.URIs))
	}
	return heliograph.ParseIdentity(cert.URIs[0].String())
}

// chainsEnd returns when the last of the chains stops to hold; each holds as
// long as all of its certificates.
func chainsEnd(chains [][]*x509.Certificate) time.Time {
	var last time.Time
	for _, chain := range chains {
		var end time.Time
		for i, cert := range chain {
			if i == 0 || cert.NotAfter.Before(end) {
				end = cert.NotAfter
			}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
