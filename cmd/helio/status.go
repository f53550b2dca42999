package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
)

// Limits of asking a node.
const (
	adminTimeout   = 5 * time.Second
	maxStatusBytes = 8 << 20
	watchEvery     = time.Second
)

func newStatusCommand(std stdio) *cobra.Command {
	var (
		admin, output string
		watch         bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show where a node stands",
		Example: `  helio status
  helio status --admin unix:/var/lib/helio/admin.sock -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, err := statusPrinter(output)
			if err != nil {
				return usageError{err}
			}
			client, base, err := adminClient(admin)
			if err != nil {
				return usageError{err}
			}
			show := func(ctx context.Context, before string) error {
				raw, err := fetchStatus(ctx, client, base, admin)
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
	fl := cmd.Flags()
	fl.StringVar(&admin, "admin", "http://"+defaultAdmin, "the node's admin API: http://host:port or unix:DATA-DIR/admin.sock")
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

// adminClient returns a client for an admin address and the URL to ask.
func adminClient(admin string) (*http.Client, string, error) {
	if path, ok := strings.CutPrefix(admin, "unix:"); ok && path != "" {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
		return &http.Client{Timeout: adminTimeout, Transport: &http.Transport{DialContext: dial}}, "http://helio", nil
	}
	u, err := url.Parse(admin)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, "", fmt.Errorf("--admin %q: want http://host:port or unix:DATA-DIR/admin.sock", admin)
	}
	return &http.Client{Timeout: adminTimeout}, "http://" + u.Host, nil
}

func fetchStatus(ctx context.Context, client *http.Client, base, admin string) ([]byte, error) {
	b, code, err := askAdmin(ctx, client, http.MethodGet, base+"/v1/status", admin)
	switch {
	case err != nil:
		return nil, err
	case code != http.StatusOK || len(b) > maxStatusBytes:
		return nil, fmt.Errorf("%s answers %d %s: is it a helio node?", admin, code, http.StatusText(code))
	}
	return b, nil
}

// askAdmin asks a node and returns its answer, one byte more than maxStatusBytes
// at most.
func askAdmin(ctx context.Context, client *http.Client, method, url, admin string) (body []byte, code int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("no node answers at %s: is it running, and is this its --listen-admin? (%w)", admin, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxStatusBytes+1))
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", admin, err)
	}
	return b, resp.StatusCode, nil
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
	row("DATABASE", "%s/%s (%s, %s)", s.Cluster, s.Name, s.Role, s.Mode)
	row("STATUS", "%s", s.Status)
	if s.Why != "" {
		row("WHY", "%s", s.Why)
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
