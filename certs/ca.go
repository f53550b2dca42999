package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/heliograph/heliograph"
)

// DefaultDomain is the domain of a CA for which no other is given.
const DefaultDomain = "heliograph.local"

// Names of the CA's files in its folder.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
)

const (
	caYears = 10
	// backdate makes a new certificate valid at once on nodes whose clocks
	// are behind the issuer's.
	backdate = time.Hour
)

// ParseDomain checks a domain: the rules of a name ([heliograph.ParseName]),
// in lower case, and a DNS name, because a name constraint can hold nothing else.
func ParseDomain(s string) (string, error) {
	if _, err := heliograph.ParseName(s); err != nil {
		return "", fmt.Errorf("domain: %w", err)
	}
	if s != strings.ToLower(s) {
		return "", fmt.Errorf("domain %q has capital letters: use %q", s, strings.ToLower(s))
	}
	if !validHost(s) {
		return "", fmt.Errorf("domain %q is no DNS name: an IP address and a part that begins with '-' are none", s)
	}
	return s, nil
}

// Init makes a CA for a domain ([DefaultDomain] if empty): an ECDSA P-256 key
// and a certificate for ten years that can sign nothing but leaves whose URIs
// lie in the domain. It creates dir with mode 0700 if there is none, and
// overwrites nothing.
func Init(dir, domain string) error {
	if domain == "" {
		domain = DefaultDomain
	}
	domain, err := ParseDomain(domain)
	if err != nil {
		return err
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	for _, name := range []string{CAKeyFile, CACertFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return exists(dir, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "Heliograph CA for " + domain},
		NotBefore:                   now.Add(-backdate),
		NotAfter:                    now.AddDate(caYears, 0, 0),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true, // the flag of all name constraints
		PermittedURIDomains:         []string{domain},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("create CA: %w", err)
	}
	// The key first: of two that run at once, one fails here. A crash before
	// the certificate is written leaves a key that has signed nothing.
	if err := createFile(filepath.Join(dir, CAKeyFile), keyPEM); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return exists(dir, CAKeyFile)
		}
		return fmt.Errorf("write CA key: %w", err)
	}
	if err := createFile(filepath.Join(dir, CACertFile), certPEM(der)); err != nil {
		return fmt.Errorf("write CA certificate: %w", errors.Join(err, os.Remove(filepath.Join(dir, CAKeyFile))))
	}
	return nil
}

func exists(dir, name string) error {
	return fmt.Errorf("%s exists already and is kept: use another folder, or issue certificates from this one",
		filepath.Join(dir, name))
}

// makeDir creates dir, or checks that others cannot change what is in it.
func makeDir(dir string) error {
	if dir == "" {
		return errors.New("no folder is named for the CA")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("folder %s can be written by others (mode %04o): chmod 0700 it, or use another", dir, info.Mode().Perm())
	}
	return nil
}

// authority is a CA that can sign.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	pem    []byte // the whole CA file
	domain string
}

// openAuthority reads the CA of dir. Its certificate file may hold others too,
// as it does while a CA is being replaced: the one that belongs to the key counts.
func openAuthority(dir string) (*authority, error) {
	keyPath, certPath := filepath.Join(dir, CAKeyFile), filepath.Join(dir, CACertFile)
	keyPEM, err := readFile(keyPath)
	if err != nil {
		return nil, missingCA(dir, err)
	}
	caPEM, err := readFile(certPath)
	if err != nil {
		return nil, missingCA(dir, err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key", keyPath)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T: want the ECDSA key that init wrote", keyPath, parsed)
	}
	certs, err := parseCertificates(certPath, caPEM)
	if err != nil {
		return nil, err
	}
	for _, cert := range certs {
		if !key.PublicKey.Equal(cert.PublicKey) {
			continue
		}
		if !cert.IsCA || len(cert.PermittedURIDomains) != 1 {
			return nil, fmt.Errorf("%s is not limited to one domain: make a CA with helio certs init", certPath)
		}
		domain, err := ParseDomain(cert.PermittedURIDomains[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", certPath, err)
		}
		return &authority{cert: cert, key: key, pem: caPEM, domain: domain}, nil
	}
	return nil, fmt.Errorf("%s does not belong to %s: put the two files of one CA together", certPath, keyPath)
}

func missingCA(dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no CA in %s: run helio certs init --out %s first: %w", dir, dir, err)
	}
	return fmt.Errorf("read CA: %w", err)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
