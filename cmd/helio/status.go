package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
)

// watchEvery is how often --watch asks.
const watchEvery = time.Second

func newStatusCommand(std stdio) *cobra.Command {
	var (
		node   adminFlags
		output string
		watch  bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show where a node stands",
		Example: `  helio status
  helio status --admin unix:/var/lib/helio/admin.sock -o json
  helio status --admin https://10.0.0.5:7481 --cert ops.crt --key ops.key --ca ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, err := statusPrinter(output)
			if err != nil {
				return usageError{err}
			}
			client, err := node.client()
			if err != nil {
				return err
			}
			defer client.close()
			show := func(ctx context.Context, before string) error {
				raw, err := fetchStatus(ctx, client)
				if err != nil {
					return err
				}
				if _, err := io.WriteString(std.out, before); err != nil {
					return err
				}
				return print(std.out, raw)
			}
			if !watch {
				return show(cmd.Context(), "")
			}
			return watchStatus(cmd.Context(), std, output, show)
		},
	}
	node.add(cmd, adminReads)
	fl := cmd.Flags()
	fl.StringVarP(&output, "output", "o", "table", "table or json")
	fl.BoolVar(&watch, "watch", false, "go on until interrupted, once a second")
	addConfigFlag(cmd)
	return cmd
}

// watchStatus shows the status until ctx ends. A node that does not answer is
// said and asked again: watching is for the time when things go wrong.
func watchStatus(ctx context.Context, std stdio, output string, show func(context.Context, string) error) error {
	before := ""
	switch {
	case output != "table":
	case newScreen(std.out).terminal:
		before = "\x1b[H\x1b[2J" // an empty screen
	default:
		before = "\n"
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if err := show(ctx, before); err != nil && ctx.Err() == nil {
			fmt.Fprintf(std.err, "helio: %v\n", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// fetchStatus asks for the status, as JSON.
func fetchStatus(ctx context.Context, client *adminClient) ([]byte, error) {
	return client.ask(ctx, http.MethodGet, "/v1/status", nil, adminTimeout)
}

func statusPrinter(output string) (func(io.Writer, []byte) error, error) {
	switch output {
	case "json":
		return func(w io.Writer, raw []byte) error {
			_, err := w.Write(raw)
			return err
		}, nil
	case "table":
		return func(w io.Writer, raw []byte) error {
			list, err := heliograph.ParseStatuses(raw)
			if err != nil {
				return fmt.Errorf("%w: is it a helio node?", err)
			}
			for _, s := range list {
				if err := printStatus(w, s); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}
	return nil, fmt.Errorf("--output %q: want table or json", output)
}

func printStatus(out io.Writer, s heliograph.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	promoted := s.Status == heliograph.Promoted
	if promoted {
		row("DATABASE", "%s/%s (an etcd of its own)", s.Cluster, s.Name)
	} else {
		row("DATABASE", "%s/%s (%s, %s)", s.Cluster, s.Name, s.Role, s.Mode)
	}
	row("STATUS", "%s", s.Status)
	if s.Why != "" {
		row("WHY", "%s", s.Why)
	}
	if promoted { // nothing of it is a mirror's any more
		row("ORIGIN", "%s", s.Origin)
		row("REVISION", "%d", s.AppliedRevision)
		row("COMPACTED", "%d", s.CompactRevision)
		return w.Flush()
	}
	row("UPSTREAM", "%s", s.Upstream)
	if s.Origin != "" {
		row("ORIGIN", "%s", s.Origin)
	}
	if s.BytesTotal > 0 {
		row("SNAPSHOT", "%d of %d bytes, %s left", s.BytesDone, s.BytesTotal, duration(s.ETAMS))
	}
	if s.Reads != "" {
		row("READS", "%s", s.Reads)
	}
	row("APPLIED", "%d (durable %d)", s.AppliedRevision, s.DurableRevision)
	row("HEAD", "%d (%d behind)", s.HeadRevision, s.BehindRevisions)
	row("COMPACTED", "%d", s.CompactRevision)
	row("LAG", "%s", duration(s.LagMS))
	row("STALENESS", "%s", duration(s.StalenessMS))
	if s.LastVerifiedAt.IsZero() {
		row("VERIFIED", "never")
	} else {
		row("VERIFIED", "revision %d, %s ago", s.LastVerifiedRevision, time.Since(s.LastVerifiedAt).Round(time.Second))
	}
	if s.LastVerifyResult != "" && s.LastVerifyResult != heliograph.VerifyEqual {
		row("LAST TRY", "%s, %s ago: %s", s.LastVerifyResult, time.Since(s.LastVerifyAt).Round(time.Second), s.LastVerifyWhy)
	}
	if len(s.Downstreams) > 0 {
		row("MIRRORS", "%d", len(s.Downstreams))
		fmt.Fprintln(w, "  NAME\tCLUSTER\tSTATE\tAPPLIED\tDURABLE\tLAG\tADDRESS")
		for _, d := range s.Downstreams {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%d\t%d\t%s\t%s\n", d.Name, d.Cluster, d.State, d.AppliedRevision, d.DurableRevision, duration(d.LagMS), d.Address)
		}
	}
	return w.Flush()
}

// duration prints milliseconds; -1 is not known.
func duration(ms int64) string {
	if ms < 0 {
		return "unknown"
	}
	return (time.Duration(ms) * time.Millisecond).String()
}
