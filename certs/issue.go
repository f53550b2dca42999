package certs

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/heliograph/heliograph"
)

// DefaultLifetime is how long a certificate holds for which nothing else is
// said: a year.
const DefaultLifetime = 365 * 24 * time.Hour

// MaxHosts is the most extra hosts that a certificate can name.
const MaxHosts = 64

// IssueConfig says for whom a certificate is. Dir, Cluster, Role and Name are
// required.
type IssueConfig struct {
	Dir      string // the CA's folder, where the new files go too
	Cluster  heliograph.ClusterID
	Role     heliograph.Role
	Name     string        // of the node or operator; also of the files
	Hosts    []string      // further DNS names and IP addresses; none is needed to dial by cluster
	Lifetime time.Duration // from now; zero means DefaultLifetime. Never beyond the CA's end
}

// Validate checks every field by itself, without looking at files. Its error
// names the field.
func (c IssueConfig) Validate() error {
	if c.Dir == "" {
		return errors.New("Dir: no folder is named for the CA")
	}
	if _, err := heliograph.ParseClusterID(string(c.Cluster)); err != nil {
		return fmt.Errorf("Cluster: %w", err)
	}
	if _, err := heliograph.ParseRole(string(c.Role)); err != nil {
		return fmt.Errorf("Role: %w", err)
	}
	if dialled(c.Role) && !validHost(string(c.Cluster)) {
		return fmt.Errorf("Cluster: %q cannot be a server name, which a %s needs: an IP address and a part that begins with '-' cannot", c.Cluster, c.Role)
	}
	if _, err := heliograph.ParseName(c.Name); err != nil {
		return fmt.Errorf("Name: %w", err)
	}
	if strings.EqualFold(c.Name, "ca") {
		return fmt.Errorf("Name: %q is taken by the files of the CA", c.Name)
	}
	if len(c.Hosts) > MaxHosts {
		return fmt.Errorf("Hosts: %d are too many: at most %d", len(c.Hosts), MaxHosts)
	}
	for _, host := range c.Hosts {
		if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
			continue
		}
		if !validHost(host) {
			return fmt.Errorf("Hosts: %.80q is neither a DNS name nor an IP address: give hosts without port, brackets, zone or wildcard", host)
		}
	}
	if c.Lifetime < 0 {
		return fmt.Errorf("Lifetime: %s is negative", c.Lifetime)
	}
	return nil
}

// validHost reports whether s is a DNS name: labels of letters, digits, '-' and
// '_', none of which begins with '-'. An IP address is none.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// Issue makes a key and a certificate signed by the CA in c.Dir and writes them
// there as NAME.crt and NAME.key, mode 0600. It returns the files that the node
// is to be started with.
//
// The same identity can be issued again: that renews it, with a new key, and a
// node that reads the files keeps its old pair until both are new. Files of
// another identity are never overwritten.
func Issue(c IssueConfig) (Files, error) {
	if err := c.Validate(); err != nil {
		return Files{}, err
	}
	ca, err := openAuthority(c.Dir)
	if err != nil {
		return Files{}, err
	}
	now := time.Now()
	if !now.Before(ca.cert.NotAfter) {
		return Files{}, fmt.Errorf("the CA in %s has expired (%s): make a new one in another folder", c.Dir, stamp(ca.cert.NotAfter))
	}
	identity := heliograph.Identity{Domain: ca.domain, Cluster: c.Cluster, Role: c.Role, Name: c.Name}
	files := Files{
		Cert: filepath.Join(c.Dir, c.Name+".crt"),
		Key:  filepath.Join(c.Dir, c.Name+".key"),
		CA:   filepath.Join(c.Dir, CACertFile),
	}
	if err := checkOverwrite(files, identity); err != nil {
		return Files{}, err
	}
	template, err := c.template(identity, now)
	if err != nil {
		return Files{}, err
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return Files{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Files{}, fmt.Errorf("sign certificate: %w", err)
	}
	made := contents{cert: certPEM(der), key: keyPEM, ca: ca.pem}
	if _, err := newMaterial(files, made, dialled(c.Role), now); err != nil {
		return Files{}, fmt.Errorf("the new certificate would be refused: %w", err)
	}
	// The certificate first: after a crash between the two it says whose the
	// files are, and the same command repairs them.
	if err := replaceFile(files.Cert, made.cert); err != nil {
		return Files{}, fmt.Errorf("write certificate: %w", err)
	}
	if err := replaceFile(files.Key, made.key); err != nil {
		return Files{}, fmt.Errorf("write key: %w", err)
	}
	return files, nil
}

// template has no subject: the URI is all that says who this is.
func (c IssueConfig) template(identity heliograph.Identity, now time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(identity.String())
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", identity, err)
	}
	lifetime := c.Lifetime
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	t := &x509.Certificate{
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usages(dialled(c.Role)),
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri},
	}
	if dialled(c.Role) {
		t.DNSNames = append(t.DNSNames, string(c.Cluster))
	}
	for _, host := range c.Hosts {
		if addr, err := netip.ParseAddr(host); err == nil {
			t.IPAddresses = append(t.IPAddresses, addr.AsSlice())
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	return t, nil
}

// dialled reports whether certificates of the role are issued for being dialled:
// those of all nodes, since operators dial each of them. That a mirror is not
// followed is told from its role, by who dials: see [Credentials.ClientTLS].
func dialled(r heliograph.Role) bool { return r != heliograph.RoleOperator }

// checkOverwrite lets files be written that do not exist, or are the identity's.
func checkOverwrite(files Files, identity heliograph.Identity) error {
	data, err := readFile(files.Cert)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(files.Key); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists without a certificate that says whose it is: move it away first", files.Key)
		}
		return nil
	}
	if err != nil {
		return err
	}
	certs, err := parseCertificates(files.Cert, data)
	if err != nil {
		return fmt.Errorf("%s exists and is not overwritten: %w", files.Cert, err)
	}
	held, err := IdentityOf(certs[0])
	if err != nil {
		return fmt.Errorf("%s exists and is not overwritten: %w", files.Cert, err)
	}
	if held != identity {
		return fmt.Errorf("%s belongs to %s and is not overwritten: use another name than %q for %s", files.Cert, held, identity.Name, identity)
	}
	return nil
}
