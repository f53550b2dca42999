package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/promote"
)

func newExportCommand(std stdio) *cobra.Command {
	var (
		admin        adminFlags
		opts         node.ExportOptions
		dir          string
		kind, output string
		level        string
	)
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write a replica as a snapshot or data directory for an etcd that is run by other means",
		Long: `export writes what a promotion would make of a replica, for an etcd that helio does
not run; the node mirrors on. A snapshot is what 'etcdctl snapshot save' writes, and
'etcdutl snapshot restore' makes clusters of any size of it. A datadir is the data
directory of a cluster of one, ready for 'etcd --data-dir'.

With --admin a running node writes, on its own machine and as its own user. With
--data-dir this command does, of a node that does not run.`,
		Example: `  helio export --admin unix:/var/lib/helio/admin.sock --out /backup/eu.snapshot
  helio export --data-dir /var/lib/helio --kind datadir --peer-url http://10.0.0.7:2380 --out /var/lib/etcd`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Kind = promote.Kind(kind)
			if err := checkExport(opts, dir, admin.admin, output); err != nil {
				return usageError{err}
			}
			if dir != "" || strings.HasPrefix(admin.admin, "unix:") { // this machine
				out, err := filepath.Abs(opts.Out)
				if err != nil {
					return err
				}
				opts.Out = out
			}
			fork, err := runExport(cmd.Context(), std, &admin, dir, opts, level)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(std.out)
				enc.SetIndent("", "  ")
				return enc.Encode(fork)
			}
			return printExport(std.out, fork, opts)
		},
	}
	admin.add(cmd, adminChanges)
	fl := cmd.Flags()
	fl.Lookup("admin").Usage = strings.Replace(fl.Lookup("admin").Usage, " (required)", "", 1) + "; or --data-dir"
	fl.StringVar(&dir, "data-dir", "", "data directory of a node that does not run")
	fl.StringVar(&opts.Out, "out", "", "file or folder to write, which must not exist (required)")
	fl.StringVar(&kind, "kind", string(promote.Snapshot), "snapshot or datadir")
	fl.StringVar(&opts.PeerURL, "peer-url", "", "of a datadir: where members will reach it; empty: "+promote.DefaultPeerURL)
	fl.Int64Var(&opts.BumpRevision, "bump-revision", 0, "leave out that many revisions after the last one")
	fl.BoolVar(&opts.Force, "force", false, "export although a verification has found the replica unequal to etcd, or users and roles have changed at the source since its last snapshot")
	fl.StringVarP(&output, "output", "o", "table", "table or json")
	fl.StringVar(&level, "log-level", "warn", "with --data-dir: debug, info, warn or error")
	addConfigFlag(cmd)
	return cmd
}

func checkExport(opts node.ExportOptions, dir, admin, output string) error {
	switch {
	case output != "table" && output != "json":
		return fmt.Errorf("--output %q: want table or json", output)
	case (dir == "") == (admin == ""):
		return errors.New("say either --admin, for a node that runs, or --data-dir, for one that does not")
	case opts.Out == "":
		return errors.New("--out is required: the file or folder to write")
	case opts.Kind != promote.Snapshot && opts.Kind != promote.DataDir:
		return fmt.Errorf("--kind %q: want %s or %s", opts.Kind, promote.Snapshot, promote.DataDir)
	case opts.Kind == promote.Snapshot && opts.PeerURL != "":
		return errors.New("--peer-url is for --kind datadir: of a snapshot, the restore decides")
	case opts.BumpRevision < 0:
		return fmt.Errorf("--bump-revision %d: want a positive number, such as %d", opts.BumpRevision, int64(node.SuggestedBump))
	}
	if opts.PeerURL != "" {
		if err := checkPeerURL(opts.PeerURL); err != nil {
			return fmt.Errorf("--peer-url %q: %w", opts.PeerURL, err)
		}
	}
	return nil
}

func runExport(ctx context.Context, std stdio, admin *adminFlags, dir string, opts node.ExportOptions, level string) (fork heliograph.Fork, err error) {
	if dir != "" {
		log, err := newLogger(newScreen(std.err), level)
		if err != nil {
			return fork, usageError{err}
		}
		return node.ExportDir(ctx, dir, opts, log)
	}
	client, err := admin.client()
	if err != nil {
		return fork, err
	}
	defer client.close()
	raw, err := client.ask(ctx, http.MethodPost, "/v1/export", opts, promotePatience)
	if err != nil {
		return fork, err
	}
	if err := json.Unmarshal(raw, &fork); err != nil || fork.Revision < 1 {
		return fork, fmt.Errorf("%s answers what is no export (%v): is it a helio node?", admin.admin, err)
	}
	return fork, nil
}

func printExport(out io.Writer, fork heliograph.Fork, opts node.ExportOptions) error {
	next := fmt.Sprintf("etcdutl snapshot restore %s --data-dir DIR ...", opts.Out)
	if opts.Kind == promote.DataDir {
		peer := opts.PeerURL
		if peer == "" {
			peer = promote.DefaultPeerURL
		}
		next = fmt.Sprintf("etcd --name %s --data-dir %s --listen-peer-urls %s ...", fork.Cluster, opts.Out, peer)
	}
	_, err := fmt.Fprintf(out, "%s holds %s up to revision %d; its first write will be revision %d.\nNext:  %s\n",
		opts.Out, fork.Origin, fork.Revision, fork.First(), next)
	return err
}
