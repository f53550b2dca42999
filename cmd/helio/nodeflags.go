package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/node"
)

// defaultAdmin is where a node answers for its status unless told otherwise.
const defaultAdmin = "127.0.0.1:7480"

// adminTLSPort is what --listen-admin-tls has in all examples; it has no default.
const adminTLSPort = "7481"

// nodeFlags are the flags that source and mirror share.
type nodeFlags struct {
	cluster          string
	dataDir          string
	listen           string
	listenClients    string
	listenAdmin      string
	listenAdminTLS   string
	advertiseClients []string
	peerURL          string
	promotedQuota    int64
	promotedHistory  time.Duration
	reads            string
	clients          certs.ListenerFiles
	cert, key, ca    string
	allow            []string
	mode             string
	history          time.Duration
	onDivergence     string
	verifyInterval   time.Duration
	logLevel         string
}

func (f *nodeFlags) add(cmd *cobra.Command, listen string) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.cluster, "cluster", "", "name of this node's cluster (required)")
	fl.StringVar(&f.dataDir, "data-dir", "", "folder for the replica (required)")
	fl.StringVar(&f.listen, "listen", listen, "host:port (UDP) on which mirrors are served; empty: none")
	fl.StringVar(&f.listenClients, "listen-clients", "", "host:port (TCP) on which etcd clients read; empty: none")
	fl.StringVar(&f.listenAdmin, "listen-admin", defaultAdmin, "host:port (TCP) for status, metrics and probes; empty: the socket in the data directory only")
	fl.StringVar(&f.listenAdminTLS, "listen-admin-tls", "", "host:port (TCP) for the same over TLS with --cert, where operators may change the node; empty: none")
	fl.StringSliceVar(&f.advertiseClients, "advertise-clients", nil, "URLs at which etcd clients reach this node")
	fl.StringVar(&f.peerURL, "peer-url", "", "URL at which members will reach the etcd that the node may be promoted to; empty: port 2380 of the host that clients are told")
	fl.Int64Var(&f.promotedQuota, "promoted-quota-bytes", 0, "how big the database of the etcd may get that the node may be promoted to; 0: 8 GiB, or twice the database if that is more")
	fl.DurationVar(&f.promotedHistory, "promoted-auto-compaction", 0, "how much history that etcd keeps, such as 1h; 0: it compacts only when asked")
	fl.StringVar(&f.reads, "reads", "", "who may read: anyone, or client-certificate (of --client-ca); empty: anyone while the source has access control off, else nobody")
	fl.StringVar(&f.clients.Cert, "client-cert", "", "certificate shown to etcd clients; empty: no TLS for them")
	fl.StringVar(&f.clients.Key, "client-key", "", "its key")
	fl.StringVar(&f.clients.CA, "client-ca", "", "CA of the certificates that etcd clients may show")
	fl.StringVar(&f.cert, "cert", "", "this node's certificate (made by 'helio certs issue')")
	fl.StringVar(&f.key, "key", "", "its key")
	fl.StringVar(&f.ca, "ca", "", "the CA's certificate (made by 'helio certs init')")
	fl.StringSliceVar(&f.allow, "allow", nil, "names of the mirrors that may follow; empty: any with a certificate of this CA")
	fl.StringVar(&f.mode, "mode", string(heliograph.Async), "when revisions are acknowledged: async (durable within 100 ms) or sync (durable first)")
	fl.DurationVar(&f.history, "history", 0, "keep compacted history this much longer than the upstream does")
	fl.StringVar(&f.onDivergence, "on-divergence", string(node.Stop), "what to do when the replica and its upstream hold different histories: stop, or resync (drop the replica, bootstrap anew from what the upstream has now, even if that is another or an empty etcd)")
	fl.DurationVar(&f.verifyInterval, "verify-interval", time.Hour, "how often to compare HashKV with etcd's; 0: only when asked (helio verify)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	addConfigFlag(cmd)
}

// config checks the shared flags and turns them into a node's configuration.
func (f *nodeFlags) config(talk *screen, role heliograph.Role) (node.Config, error) {
	fail := func(err error) (node.Config, error) { return node.Config{}, usageError{err} }
	if f.cluster == "" {
		return fail(errors.New("--cluster is required: the name of this node's cluster, such as prod-us"))
	}
	cluster, err := heliograph.ParseClusterID(f.cluster)
	if err != nil {
		return fail(fmt.Errorf("--cluster: %w", err))
	}
	if f.dataDir == "" {
		return fail(errors.New("--data-dir is required: a folder for the replica"))
	}
	mode, err := heliograph.ParseMode(f.mode)
	if err != nil {
		return fail(fmt.Errorf("--mode: %w", err))
	}
	for _, listen := range []struct{ flag, addr string }{
		{"listen", f.listen}, {"listen-clients", f.listenClients}, {"listen-admin", f.listenAdmin}, {"listen-admin-tls", f.listenAdminTLS},
	} {
		if err := checkListen(listen.addr); err != nil {
			return fail(fmt.Errorf("--%s %q: %w", listen.flag, listen.addr, err))
		}
	}
	for _, u := range f.advertiseClients {
		if err := checkURL(u); err != nil {
			return fail(fmt.Errorf("--advertise-clients %q: %w", u, err))
		}
	}
	if f.peerURL != "" {
		if err := checkPeerURL(f.peerURL); err != nil {
			return fail(fmt.Errorf("--peer-url %q: %w", f.peerURL, err))
		}
	}
	if f.promotedQuota < 0 {
		return fail(fmt.Errorf("--promoted-quota-bytes %d: want a number of bytes, or 0", f.promotedQuota))
	}
	if f.promotedHistory < 0 {
		return fail(fmt.Errorf("--promoted-auto-compaction %s: want a positive duration such as 1h, or 0", f.promotedHistory))
	}
	reads, err := f.checkClients()
	if err != nil {
		return fail(err)
	}
	for _, name := range f.allow {
		if _, err := heliograph.ParseName(name); err != nil {
			return fail(fmt.Errorf("--allow: %w", err))
		}
	}
	if f.history < 0 {
		return fail(fmt.Errorf("--history %s: want a positive duration such as 72h", f.history))
	}
	onDivergence, err := node.ParseOnDivergence(f.onDivergence)
	if err != nil {
		return fail(fmt.Errorf("--on-divergence %w", err))
	}
	if f.verifyInterval < 0 {
		return fail(fmt.Errorf("--verify-interval %s: want a positive duration such as 1h, or 0", f.verifyInterval))
	}
	log, err := newLogger(talk, f.logLevel)
	if err != nil {
		return fail(err)
	}
	if f.cert == "" || f.key == "" || f.ca == "" {
		return fail(fmt.Errorf("nodes know each other by certificates: --cert, --key and --ca are required. These two commands make them:\n"+
			"  helio certs init --out certs\n"+
			"  helio certs issue --out certs --cluster %s --role %s --name node1 --hosts HOST\n"+
			"then add: --cert certs/node1.crt --key certs/node1.key --ca certs/ca.crt", cluster, role))
	}
	// Without them a promoted node goes on: whether it is one, its data directory tells.
	credentials, credentialsErr := certs.Load(certs.Files{Cert: f.cert, Key: f.key, CA: f.ca}, certs.Config{
		Dialled: f.listenAdminTLS != "", Log: log.With("part", "certificates"),
	})
	var clients *certs.Listener
	if f.clients.Cert != "" {
		if clients, err = certs.LoadListener(f.clients, certs.Config{Log: log.With("part", "certificates")}); err != nil {
			return node.Config{}, fmt.Errorf("--client-cert, --client-key and --client-ca: %w", err)
		}
	}
	return node.Config{
		Reads: reads, ClientTLS: clients, OnDivergence: onDivergence, VerifyInterval: f.verifyInterval,
		Cluster: cluster, DataDir: f.dataDir,
		Listen: f.listen, ListenClients: f.listenClients, ListenAdmin: f.listenAdmin, ListenAdminTLS: f.listenAdminTLS,
		AdvertiseClients: f.advertiseClients,
		PeerURL:          f.peerURL, PromotedQuota: f.promotedQuota, PromotedHistory: f.promotedHistory,
		Credentials: credentials, CredentialsErr: credentialsErr, Allow: f.allow, Mode: mode, History: f.history, Log: log,
	}, nil
}

// checkClients checks what the flags say of etcd clients.
func (f *nodeFlags) checkClients() (node.Reads, error) {
	reads, err := node.ParseReads(f.reads)
	switch c := f.clients; {
	case err != nil:
		return "", fmt.Errorf("--%w", err)
	case (c.Cert == "") != (c.Key == ""):
		return "", errors.New("--client-cert and --client-key are needed together")
	case c.Cert == "" && c.CA != "":
		return "", errors.New("--client-ca needs --client-cert and --client-key: certificates are shown over TLS only")
	case reads == node.ReadsClientCertificate && c.CA == "":
		return "", errors.New("--reads=client-certificate needs --client-cert, --client-key and --client-ca: the CA whose certificates may read")
	case f.listenClients == "" && (reads != node.ReadsAsSource || c.Cert != ""):
		return "", errors.New("--reads and --client-cert are about etcd clients, and none are served: add --listen-clients")
	}
	return reads, nil
}

func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// checkListen checks an address to listen on; empty means none.
func checkListen(addr string) error {
	if addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("want host:port, such as 127.0.0.1:7400 or [::1]:7400")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q: want a number from 1 to 65535, or 0 for any that is free", port)
	}
	return nil
}

// checkURL checks the URL of an etcd or of a node's etcd API.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" ||
		u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("want http://host:port or https://host:port")
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil {
		return fmt.Errorf("port %q: want a number from 1 to 65535", u.Port())
	}
	return nil
}

// checkPeerURL checks the URL of an etcd that members are told.
func checkPeerURL(s string) error {
	if err := checkURL(s); err != nil {
		return err
	}
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsUnspecified() {
		return errors.New("members are told this, and it names no host: use an address or a name of this machine")
	}
	return nil
}

// runNode runs a node until ctx ends, and shows a snapshot's progress meanwhile.
func runNode(ctx context.Context, cfg node.Config, talk *screen) error {
	n, err := node.Open(cfg)
	if err != nil {
		return err
	}
	a := n.Addrs()
	cfg.Log.Info("listening", "mirrors", a.Mirrors, "clients", a.Clients, "admin", a.Admin, "admin_tls", a.AdminTLS, "socket", a.Socket)
	progress := startProgress(ctx, talk, func() heliograph.Status { return n.Status()[0] })
	ended := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		if ctx.Err() != nil {
			cfg.Log.Info("stopping, a second signal ends it at once", "why", context.Cause(ctx))
		}
	})
	err = n.Run(ctx)
	close(ended)
	stopping.Wait()
	progress.stop()
	return errors.Join(err, n.Close())
}
