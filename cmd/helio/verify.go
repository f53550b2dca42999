package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
)

// verifyPatience is longer than a node takes at most.
const verifyPatience = 12 * time.Minute

// errNotEqual ends a command whose answer has been printed: it is just not the one
// that was hoped for.
var errNotEqual = errors.New("not verified to be equal")

func newVerifyCommand(std stdio) *cobra.Command {
	var (
		node   adminFlags
		output string
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare a node with its etcd, by etcd's own hash of everything",
		Long: `verify compares HashKV of etcd, of the nodes between and of this node, all at one
revision and one compaction revision. It reads whole databases: seconds for small
ones, minutes for big ones. It ends with 0 if they are equal, and with 1 if they
are not or if it could not be told.`,
		Example: `  helio verify
  helio verify --admin unix:/var/lib/helio/admin.sock -o json
  helio verify --admin https://10.0.0.5:7481 --cert ops.crt --key ops.key --ca ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError{fmt.Errorf("--output %q: want table or json", output)}
			}
			client, err := node.client()
			if err != nil {
				return err
			}
			defer client.close()
			raw, err := client.ask(cmd.Context(), http.MethodPost, "/v1/verify", nil, verifyPatience)
			if err != nil {
				return err
			}
			var v heliograph.Verification
			if err := json.Unmarshal(raw, &v); err != nil || v.Result == "" {
				return fmt.Errorf("%s answers what is no verification (%v): is it a helio node?", node.admin, err)
			}
			if output == "json" {
				_, err = std.out.Write(raw)
			} else {
				err = printVerification(std.out, v)
			}
			if err == nil && v.Result != heliograph.VerifyEqual {
				err = fmt.Errorf("%s: %w", v.Result, errNotEqual)
			}
			return err
		},
	}
	node.add(cmd, adminReads)
	fl := cmd.Flags()
	fl.StringVarP(&output, "output", "o", "table", "table or json")
	addConfigFlag(cmd)
	return cmd
}

func printVerification(out io.Writer, v heliograph.Verification) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "RESULT\t%s\n", v.Result)
	if v.Why != "" {
		fmt.Fprintf(w, "WHY\t%s\n", v.Why)
	}
	if v.Result != heliograph.VerifyUnknown {
		fmt.Fprintf(w, "REVISION\t%d (compacted at %d)\n", v.Revision, v.CompactRevision)
		fmt.Fprintf(w, "ETCD\t%08x (%s)\n", v.EtcdHash, v.EtcdEndpoint)
		fmt.Fprintf(w, "NODE\t%08x\n", v.Hash)
	}
	fmt.Fprintf(w, "TOOK\t%s\n", duration(v.TookMS))
	return w.Flush()
}
