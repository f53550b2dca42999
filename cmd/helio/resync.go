package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph/node"
)

func newResyncCommand(std stdio) *cobra.Command {
	var (
		admin adminFlags
		opts  node.ResyncOptions
	)
	cmd := &cobra.Command{
		Use:   "resync",
		Short: "Drop a node's replica and copy it anew from its upstream",
		Long: `resync drops what a node holds and bootstraps it anew, whatever history its
upstream has. It is the way out of "diverged", once it is clear which side is
right. Readers and watchers of the node get errors, and have to read anew; mirrors
of the node that hold another history become diverged themselves.

It is refused while there is no upstream to copy from: then what the node holds may
be the only copy, for helio promote or helio export.`,
		Example: `  helio resync --admin unix:/var/lib/helio/admin.sock
  helio resync --admin https://10.0.0.5:7481 --cert ops.crt --key ops.key --ca ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := admin.client()
			if err != nil {
				return err
			}
			defer client.close()
			if _, err := client.ask(cmd.Context(), http.MethodPost, "/v1/resync", opts, 3*adminTimeout); err != nil {
				if u, ok := errors.AsType[*unanswered](err); ok && u.heard {
					err = fmt.Errorf("%w; the replica may be dropped all the same: helio status shows it", err)
				}
				return err
			}
			_, err = fmt.Fprintln(std.out, "The replica is dropped; 'helio status' shows how far the new one is.")
			return err
		},
	}
	admin.add(cmd, adminChanges)
	cmd.Flags().BoolVar(&opts.Force, "force", false, "drop what the node holds although there is no upstream to copy from")
	addConfigFlag(cmd)
	return cmd
}
