package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
)

func newSourceCommand(std stdio) *cobra.Command {
	var (
		shared   nodeFlags
		database string
		etcd     etcdFlags
	)
	cmd := &cobra.Command{
		Use:   "source",
		Short: "Run a source node beside an etcd cluster",
		Long: `A source node follows an etcd cluster and serves its mirrors, so that they load
neither etcd's watch nor its disk.`,
		Example: `  helio source --cluster prod-us --etcd http://10.0.0.1:2379,http://10.0.0.2:2379 \
    --data-dir /var/lib/helio --cert us.crt --key us.key --ca ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			talk := newScreen(std.err)
			cfg, err := shared.config(talk, heliograph.RoleSource)
			if err != nil {
				return err
			}
			if cfg.Database, err = heliograph.ParseDatabaseID(database); err != nil {
				return usageError{fmt.Errorf("--database: %w", err)}
			}
			if cfg.Etcd, err = etcd.config(); err != nil {
				return err
			}
			return runNode(cmd.Context(), cfg, talk)
		},
	}
	shared.add(cmd, "0.0.0.0:"+heliograph.DefaultDataPort)
	fl := cmd.Flags()
	fl.StringVar(&database, "database", string(heliograph.DefaultDatabase), "name of the database that the etcd holds")
	fl.StringSliceVar(&etcd.endpoints, "etcd", nil, "endpoints of the etcd cluster, http(s)://host:port,... (required)")
	fl.StringVar(&etcd.caCert, "etcd-cacert", "", "CA of the etcd's certificates; empty: the system's")
	fl.StringVar(&etcd.cert, "etcd-cert", "", "client certificate for the etcd")
	fl.StringVar(&etcd.key, "etcd-key", "", "its key")
	fl.StringVar(&etcd.user, "etcd-user", "", "user with the root role, if the etcd has authentication on")
	fl.StringVar(&etcd.passwordFile, "etcd-password-file", "", "file that holds the user's password")
	return cmd
}

// etcdFlags say how the etcd is reached.
type etcdFlags struct {
	endpoints         []string
	caCert, cert, key string
	user              string
	passwordFile      string
}

// maxPasswordBytes bounds a password file.
const maxPasswordBytes = 4096

func (f *etcdFlags) config() (*node.Etcd, error) {
	fail := func(format string, args ...any) (*node.Etcd, error) {
		return nil, usageError{fmt.Errorf(format, args...)}
	}
	if len(f.endpoints) == 0 {
		return fail("--etcd is required: the endpoints of the etcd cluster, such as http://127.0.0.1:2379")
	}
	secure := 0
	for _, endpoint := range f.endpoints {
		if err := checkURL(endpoint); err != nil {
			return fail("--etcd %q: %w", endpoint, err)
		}
		if strings.HasPrefix(endpoint, "https:") {
			secure++
		}
	}
	if secure != 0 && secure != len(f.endpoints) {
		return fail("--etcd mixes http and https: use one of them for all endpoints")
	}
	if (f.cert == "") != (f.key == "") {
		return fail("--etcd-cert and --etcd-key are needed together")
	}
	if secure == 0 && (f.caCert != "" || f.cert != "") {
		return fail("--etcd-cacert and --etcd-cert need https endpoints in --etcd")
	}
	if (f.user == "") != (f.passwordFile == "") {
		return fail("--etcd-user and --etcd-password-file are needed together")
	}
	cfg := &node.Etcd{Endpoints: f.endpoints, Username: f.user}
	if f.passwordFile != "" {
		b, err := os.ReadFile(f.passwordFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-password-file: %w", err)
		}
		if cfg.Password = strings.TrimRight(string(b), "\r\n"); cfg.Password == "" || len(b) > maxPasswordBytes {
			return nil, fmt.Errorf("--etcd-password-file %s: want a password of 1 to %d bytes", f.passwordFile, maxPasswordBytes)
		}
	}
	if secure > 0 {
		var err error
		if cfg.TLS, err = f.tls(); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

func (f *etcdFlags) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.caCert != "" {
		b, err := os.ReadFile(f.caCert)
		if err != nil {
			return nil, fmt.Errorf("--etcd-cacert: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("--etcd-cacert %s holds no certificate: want a PEM file", f.caCert)
		}
	}
	if f.cert != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(f.cert, f.key)
			if err != nil {
				return nil, fmt.Errorf("--etcd-cert and --etcd-key: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		// Read anew for each connection, so that a renewed pair needs no restart.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

var errNoUpstream = errors.New("--from is required: the source to follow, such as helio://10.0.0.5:7400/prod-us")
