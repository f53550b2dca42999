package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
)

// Limits of asking a node.
const (
	adminTimeout   = 5 * time.Second // to connect, and for answers that take no work
	maxAnswerBytes = 8 << 20
)

// adminUse is what a command wants of a node.
type adminUse int

const (
	adminReads   adminUse = iota // what anyone may do who reaches the node
	adminChanges                 // what needs the admin socket, or an operator certificate
)

// adminFlags say how a command reaches a node's admin API. A command calls add for
// its flags and client when it runs:
//
//	client, err := flags.client()
//	if err != nil {
//		return err
//	}
//	defer client.close()
//	body, err := client.ask(ctx, http.MethodPost, "/v1/resync", nil, patience)
//
// A node that answers anything but 200 gives an *adminRefusal with code and body.
type adminFlags struct {
	use     adminUse
	admin   string
	files   certs.Files
	cluster string
}

func (f *adminFlags) add(cmd *cobra.Command, use adminUse) {
	f.use = use
	fl := cmd.Flags()
	const forms = "the node's admin API: "
	switch use {
	case adminReads:
		fl.StringVar(&f.admin, "admin", "http://"+defaultAdmin, forms+"http://host:port, unix:DATA-DIR/admin.sock, or https://host:port with a certificate")
	case adminChanges:
		fl.StringVar(&f.admin, "admin", "", forms+"unix:DATA-DIR/admin.sock, or https://host:port with an operator certificate (required)")
	}
	fl.StringVar(&f.files.Cert, "cert", "", "for https: certificate to show (made by 'helio certs issue')")
	fl.StringVar(&f.files.Key, "key", "", "for https: its key")
	fl.StringVar(&f.files.CA, "ca", "", "for https: the CA's certificate (made by 'helio certs init')")
	fl.StringVar(&f.cluster, "cluster", "", "for https: cluster that the node is of; empty: that of --cert")
}

// client returns a client for what the flags say; whoever gets it closes it.
func (f *adminFlags) client() (*adminClient, error) {
	misuse := func(format string, args ...any) (*adminClient, error) {
		return nil, usageError{fmt.Errorf(format, args...)}
	}
	if f.use == adminChanges && !strings.HasPrefix(f.admin, "unix:") && !strings.HasPrefix(f.admin, "https:") {
		const doors = "unix:DATA-DIR/admin.sock, the socket in the node's data directory, or https://HOST:PORT, " +
			"its --listen-admin-tls, with the --cert, --key and --ca of an operator"
		switch {
		case f.admin == "":
			return misuse("--admin is required: %s", doors)
		case strings.HasPrefix(f.admin, "http:"):
			return misuse("--admin %s: what changes a node is not taken over http: use %s", f.admin, doors)
		}
		return misuse("--admin %q: want %s", f.admin, doors)
	}
	if path, ok := strings.CutPrefix(f.admin, "unix:"); ok && path != "" {
		c := newAdminClient(f.admin, "http://helio", &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: adminTimeout}).DialContext(ctx, "unix", path)
			},
		})
		c.socket = path
		return c, nil
	}
	u, err := url.Parse(f.admin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return misuse("--admin %q: want http://host:port, https://host:port or unix:DATA-DIR/admin.sock", f.admin)
	}
	if u.Scheme == "http" {
		return newAdminClient(f.admin, "http://"+u.Host, &http.Transport{
			DialContext: (&net.Dialer{Timeout: adminTimeout}).DialContext,
		}), nil
	}
	if f.files.Cert == "" || f.files.Key == "" || f.files.CA == "" {
		return misuse("--admin %s needs --cert, --key and --ca: over TLS a node answers those who show a certificate of its CA. "+
			"This command makes one:\n  helio certs issue --out certs --cluster CLUSTER --role operator --name NAME", f.admin)
	}
	id, err := f.load()
	if err != nil {
		return nil, err
	}
	cluster := id.Identity().Cluster
	if f.cluster != "" {
		if cluster, err = heliograph.ParseClusterID(f.cluster); err != nil {
			return misuse("--cluster: %w", err)
		}
	}
	c := newAdminClient(f.admin, "https://"+u.Host, &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			// Read anew for each connection, so that --watch outlives a renewal.
			credentials, err := f.load()
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, adminTimeout)
			defer cancel()
			dialer := tls.Dialer{Config: credentials.AdminTLS(adminALPN, cluster)}
			return dialer.DialContext(ctx, network, addr)
		},
	})
	c.cluster, c.ca = cluster, f.files.CA
	return c, nil
}

func (f *adminFlags) load() (*certs.Credentials, error) { return certs.Load(f.files, certs.Config{}) }

// adminALPN is what the admin API is spoken in over TLS.
const adminALPN = "http/1.1"

// adminClient asks one node.
type adminClient struct {
	admin     string               // as the user has written it
	base      string               // URL before the path
	socket    string               // path of the unix socket; empty: there is none
	cluster   heliograph.ClusterID // over TLS: what the node has to be of
	ca        string               // over TLS: the file of the CA
	transport *http.Transport
	http      *http.Client
}

func newAdminClient(admin, base string, transport *http.Transport) *adminClient {
	return &adminClient{admin: admin, base: base, transport: transport, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// close ends the connections that are kept for the next request.
func (c *adminClient) close() { c.transport.CloseIdleConnections() }

// ask sends a request, with in as JSON unless it is nil, and returns the body of the
// answer, which it waits for as long as patience. An answer other than 200 is an
// *[adminRefusal], no answer an *[unanswered].
func (c *adminClient) ask(ctx context.Context, method, path string, in any, patience time.Duration) ([]byte, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unanswered(err, connected.Load(), patience)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return nil, c.unanswered(err, true, patience)
	case len(b) > maxAnswerBytes:
		return nil, fmt.Errorf("%s answers more than %d bytes: is it a helio node?", c.admin, maxAnswerBytes)
	case resp.StatusCode == http.StatusBadRequest && strings.HasPrefix(c.base, "http:") && bytes.Contains(b, []byte("HTTPS server")):
		return nil, fmt.Errorf("%s speaks TLS: use https:// and --cert, --key and --ca", c.admin)
	case resp.StatusCode != http.StatusOK:
		return nil, &adminRefusal{
			admin: c.admin, code: resp.StatusCode, body: b,
			sentence: strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain"),
		}
	}
	return b, nil
}

// adminRefusal is an answer other than 200.
type adminRefusal struct {
	admin string
	code  int
	body  []byte // at most maxAnswerBytes; a sentence, or JSON

	sentence bool // body is what the node says of the request
}

func (r *adminRefusal) Error() string {
	const most = 1000
	what := strings.TrimSpace(string(r.body[:min(len(r.body), most)]))
	if r.sentence && (r.code == http.StatusBadRequest || r.code == http.StatusConflict) {
		return what
	}
	if r.code == http.StatusNotFound {
		what += ": is it a helio node, and one that knows this?"
	}
	return fmt.Sprintf("%s answers %d %s: %s", r.admin, r.code, http.StatusText(r.code), what)
}

// unanswered is a request that had no answer.
type unanswered struct {
	error      // says why, and the way out
	heard bool // the node may have heard it, and may do what it asks for
}

func (u *unanswered) Unwrap() error { return u.error }

// unanswered says what kept a request from being answered. If there was no
// connection yet, the node has not heard it; nor if it has refused the certificate,
// which it does after the client has taken the connection for good.
func (c *adminClient) unanswered(err error, connected bool, patience time.Duration) *unanswered {
	refused, ok := errors.AsType[*net.OpError](err)
	return &unanswered{c.explain(err, connected, patience), connected && (!ok || refused.Op != "remote error")}
}

// explain says what kept a request from being answered, and the way out.
func (c *adminClient) explain(err error, connected bool, patience time.Duration) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the URL, which says less than --admin
	}
	ended := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted before %s answered (%w)", c.admin, err)
	}
	if !strings.HasPrefix(c.base, "https:") {
		switch {
		case ended:
			return fmt.Errorf("%s ended the connection before it answered (%w)", c.admin, err)
		case errors.Is(err, syscall.EACCES):
			return fmt.Errorf("%s: only the user that runs the node may use its socket: become that user (%w)", c.admin, err)
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("%s does not answer within %s (%w)", c.admin, patience, err)
		case c.socket != "":
			return c.noSocket(err)
		}
		return fmt.Errorf("no node answers at %s: is it running, and is this its --listen-admin? (%w)", c.admin, err)
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain || errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("%s does not speak TLS: https is for a node's --listen-admin-tls, its --listen-admin speaks http (%w)", c.admin, err)
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return fmt.Errorf("%s shows a certificate that no CA in %s has signed: use the ca.crt of the node's CA, or correct the address (%w)", c.admin, c.ca, err)
	}
	if other, ok := errors.AsType[x509.HostnameError](err); ok {
		return c.wrongNode(other.Certificate, err)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return fmt.Errorf("the certificate that %s shows is not valid now: issue it again, and check the clocks (%w)", c.admin, err)
		case x509.IncompatibleUsage:
			return c.wrongNode(invalid.Cert, err)
		}
	}
	if refused, ok := errors.AsType[*net.OpError](err); ok && refused.Op == "remote error" {
		return fmt.Errorf("%s refuses the certificate of --cert: it must hold now, and be signed by a CA that the node knows by its --ca (%w)", c.admin, err)
	}
	switch {
	case ended && !connected:
		return fmt.Errorf("%s ended the connection before it showed a certificate: https is for a node's --listen-admin-tls; correct the address (%w)", c.admin, err)
	case ended:
		return fmt.Errorf("%s ended the connection, as a node does that refuses the certificate of --cert: "+
			"it must hold now, and be signed by a CA that the node knows by its --ca (%w)", c.admin, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer within %s (%w)", c.admin, patience, err)
	}
	if _, dial := errors.AsType[*net.OpError](err); dial {
		return fmt.Errorf("no node answers at %s: is it running, and is this its --listen-admin-tls? (%w)", c.admin, err)
	}
	return fmt.Errorf("%s: %w", c.admin, err) // it says the way out by itself
}

// noSocket says what there is in the place of a socket that a node listens on.
func (c *adminClient) noSocket(err error) error {
	info, serr := os.Stat(c.socket)
	switch {
	case errors.Is(serr, fs.ErrNotExist):
		return fmt.Errorf("there is no socket at %s: is the node running, and is %s its data directory? (%w)", c.admin, filepath.Dir(c.socket), err)
	case serr == nil && info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is no socket: want unix:DATA-DIR/admin.sock, in the node's data directory (%w)", c.admin, err)
	}
	return fmt.Errorf("no node listens at %s any more: start it (%w)", c.admin, err)
}

// wrongNode says whose certificate is shown where another was expected.
func (c *adminClient) wrongNode(cert *x509.Certificate, err error) error {
	id, idErr := certs.IdentityOf(cert)
	switch {
	case idErr != nil:
		return fmt.Errorf("%s is no helio node: its certificate says nothing of one; correct the address (%w)", c.admin, err)
	case id.Cluster != c.cluster:
		return fmt.Errorf("%s is %s, not a node of cluster %s: correct the address, or say --cluster %s (%w)", c.admin, id, c.cluster, id.Cluster, err)
	}
	return fmt.Errorf("the certificate of %s is for dialling only, and not for being dialled: "+
		"issue it again with helio certs issue --cluster %s --role %s --name %s (%w)", id, id.Cluster, id.Role, id.Name, err)
}
