package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
)

func newMirrorCommand(std stdio) *cobra.Command {
	var (
		shared nodeFlags
		from   string
	)
	cmd := &cobra.Command{
		Use:   "mirror",
		Short: "Run a mirror of a source or of another mirror",
		Long: `A mirror follows a source node, or another mirror that listens for mirrors, and
lets any etcd client read and watch. It takes no writes.`,
		Example: `  helio mirror --cluster prod-eu --from helio://10.0.0.5:7400,10.0.0.6:7400/prod-us \
    --data-dir /var/lib/helio --listen-clients 127.0.0.1:2379 \
    --cert eu.crt --key eu.key --ca ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			talk := newScreen(std.err)
			address, err := upstreamOf(from, shared.dataDir)
			if err != nil {
				return usageError{err}
			}
			role := heliograph.RoleMirror
			if shared.listen != "" {
				role = heliograph.RoleRelay
			}
			cfg, err := shared.config(talk, role)
			if err != nil {
				return err
			}
			cfg.From = &address
			return runNode(cmd.Context(), cfg, talk)
		},
	}
	shared.add(cmd, "")
	cmd.Flags().StringVar(&from, "from", "", "source to follow: helio://host:port[,host:port]/cluster[/database] (required, until the mirror is promoted)")
	return cmd
}

// upstreamOf is the address that a mirror follows; one that is promoted has no need
// of it.
func upstreamOf(from, dataDir string) (heliograph.Address, error) {
	if from == "" {
		rec, _, err := promote.Read(dataDir)
		if err != nil || rec.State != promote.Promoted {
			return heliograph.Address{}, errNoUpstream
		}
		return heliograph.Address{Cluster: rec.Cluster, Database: rec.Database}, nil
	}
	address, err := heliograph.ParseAddress(from)
	if err != nil {
		return address, fmt.Errorf("--from: %w", err)
	}
	return address, nil
}
