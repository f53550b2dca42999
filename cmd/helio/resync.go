package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
)

func newResyncCommand(std stdio) *cobra.Command {
	var admin string
	cmd := &cobra.Command{
		Use:   "resync",
		Short: "Drop a node's replica and copy it anew from its upstream",
		Long: `resync drops what a node holds and bootstraps it anew, whatever history its
upstream has. It is the way out of "diverged", once it is clear which side is
right. Readers and watchers of the node get errors, and have to read anew; mirrors
of the node that hold another history become diverged themselves.`,
		Example: `  helio resync --admin unix:/var/lib/helio/admin.sock`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !strings.HasPrefix(admin, "unix:") {
				return usageError{errors.New("--admin is required: unix:DATA-DIR/admin.sock, the socket in the node's data directory; a resync is not taken from elsewhere")}
			}
			client, base, err := adminClient(admin)
			if err != nil {
				return usageError{err}
			}
			client.Timeout = 3 * adminTimeout
			body, code, err := askAdmin(cmd.Context(), client, http.MethodPost, base+"/v1/resync", admin)
			if err != nil {
				return err
			}
			if code != http.StatusOK {
				return refusedByAdmin(admin, code, body)
			}
			_, err = fmt.Fprintln(std.out, "The replica is dropped; 'helio status' shows how far the new one is.")
			return err
		},
	}
	cmd.Flags().StringVar(&admin, "admin", "", "the node's admin socket: unix:DATA-DIR/admin.sock (required)")
	addConfigFlag(cmd)
	return cmd
}
