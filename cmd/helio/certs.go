package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
)

func newCertsCommand(std stdio) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make the certificates by which nodes know each other",
		Long: `Every node proves by a certificate which cluster it belongs to and what it may do
there. 'helio certs init' makes the authority that signs them, once; 'helio certs
issue' makes one for each node and operator, and renews it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	cmd.AddCommand(newCertsInitCommand(std), newCertsIssueCommand(std))
	return cmd
}

func newCertsInitCommand(std stdio) *cobra.Command {
	var dir, domain string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a certificate authority in a new folder",
		Long: `Makes ca.crt and ca.key. ca.crt goes to every node; ca.key stays where it is, and
should be kept as a secret: who has it can be any node.`,
		Example: `  helio certs init --out certs`,
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usageError{errors.New("--out is required: a folder for the CA, such as certs")}
			}
			if _, err := certs.ParseDomain(domain); err != nil {
				return usageError{fmt.Errorf("--domain: %w", err)}
			}
			if err := certs.Init(dir, domain); err != nil {
				return err
			}
			return wrote(std, []string{filepath.Join(dir, certs.CACertFile), filepath.Join(dir, certs.CAKeyFile)},
				fmt.Sprintf("The CA for %s is made; keep its key secret.", domain),
				fmt.Sprintf("helio certs issue --out %s --cluster CLUSTER --role source --name NODE", shellWord(dir)))
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&dir, "out", "", "folder for the CA; it is created (required)")
	fl.StringVar(&domain, "domain", certs.DefaultDomain, "domain of all identities that the CA can sign")
	return cmd
}

func newCertsIssueCommand(std stdio) *cobra.Command {
	var (
		cfg           certs.IssueConfig
		cluster, role string
	)
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Make or renew the certificate of a node or operator",
		Long: `Makes NAME.crt and NAME.key beside the CA. The same command renews them; a running
node takes new files within seconds, without a restart.

Roles: a source follows an etcd; a mirror follows a node; a relay is a mirror that
serves further mirrors; an operator may change nodes through their admin API.`,
		Example: `  helio certs issue --out certs --cluster prod-us --role source --name us1
  helio certs issue --out certs --cluster prod-eu --role mirror --name eu1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, required := range []struct{ flag, value, hint string }{
				{"out", cfg.Dir, "the folder of the CA, as in 'helio certs init --out certs'"},
				{"cluster", cluster, "the cluster it is in, such as prod-us"},
				{"role", role, "source, mirror, relay or operator"},
				{"name", cfg.Name, "a name for the node or operator, such as us1"},
			} {
				if required.value == "" {
					return usageError{fmt.Errorf("--%s is required: %s", required.flag, required.hint)}
				}
			}
			if cfg.Lifetime <= 0 {
				return usageError{fmt.Errorf("--lifetime %s: want a positive duration such as 2160h", cfg.Lifetime)}
			}
			cfg.Cluster, cfg.Role = heliograph.ClusterID(cluster), heliograph.Role(role)
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return issueCertificate(std, cfg)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&cfg.Dir, "out", "", "folder of the CA, where the new files go too (required)")
	fl.StringVar(&cluster, "cluster", "", "cluster of the node (required)")
	fl.StringVar(&role, "role", "", "source, mirror, relay or operator (required)")
	fl.StringVar(&cfg.Name, "name", "", "name of the node or operator (required)")
	fl.StringSliceVar(&cfg.Hosts, "hosts", nil, "further DNS names and IP addresses to be known by, a,b,...")
	fl.DurationVar(&cfg.Lifetime, "lifetime", certs.DefaultLifetime, "how long it holds, at most until the CA's end")
	return cmd
}

func issueCertificate(std stdio, cfg certs.IssueConfig) error {
	files, err := certs.Issue(cfg)
	if err != nil {
		return err
	}
	issued, err := certs.Load(files, certs.Config{}) // what a node will see
	if err != nil {
		return err
	}
	return wrote(std, []string{files.Cert, files.Key, files.CA},
		fmt.Sprintf("Issued to %s, valid until %s.", issued.Identity(), issued.NotAfter().UTC().Format(time.RFC3339)),
		nextCommand(cfg, files))
}

// wrote prints the files on stdout, and beside it what they are and the next
// command.
func wrote(std stdio, paths []string, what, next string) error {
	if _, err := fmt.Fprintln(std.out, strings.Join(paths, "\n")); err != nil {
		return err
	}
	_, err := fmt.Fprintf(std.err, "%s Next:\n  %s\n", what, next)
	return err
}

// nextCommand returns the command for which a certificate is made; what only
// its user knows stands in capitals.
func nextCommand(cfg certs.IssueConfig, files certs.Files) string {
	flags := fmt.Sprintf("--cert %s --key %s --ca %s", shellWord(files.Cert), shellWord(files.Key), shellWord(files.CA))
	switch cfg.Role {
	case heliograph.RoleSource:
		return fmt.Sprintf("helio source --cluster %s --etcd http://127.0.0.1:2379 --data-dir DIR %s", cfg.Cluster, flags)
	case heliograph.RoleMirror:
		return fmt.Sprintf("helio mirror --cluster %s --from helio://HOST:7400/CLUSTER --data-dir DIR %s", cfg.Cluster, flags)
	case heliograph.RoleRelay:
		return fmt.Sprintf("helio mirror --cluster %s --from helio://HOST:7400/CLUSTER --listen 0.0.0.0:7400 --data-dir DIR %s", cfg.Cluster, flags)
	}
	return "helio status --admin https://HOST:" + adminTLSPort + " " + flags
}

// shellWord returns s as one word of a shell command.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
