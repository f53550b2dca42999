package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/promote"
)

// Patience with a promotion.
const (
	planPatience    = 4 * time.Minute  // the node asks the etcd that it mirrors, through all nodes on the way
	promotePatience = 45 * time.Minute // longer than a node takes at most
	promoteEvery    = 500 * time.Millisecond
)

func newPromoteCommand(std stdio) *cobra.Command {
	var (
		admin  adminFlags
		opts   node.PromoteOptions
		plan   bool
		output string
	)
	cmd := &cobra.Command{
		Use:   "promote",
		Short: "Make a writable etcd of a mirror whose source is lost",
		Long: `promote ends a node's mirroring for good, turns its replica into the data of an etcd
and runs that etcd in its place: the same addresses, the same revisions, writable.
It is a cluster of its own, with one member and a new cluster id.

It is refused while the etcd that was mirrored answers, or may answer and could not
be asked, or while revisions that are known are still on their way; --force promotes all the same. Nothing forces a
node that has no whole snapshot. --plan shows what would happen, what would be
lost, and what stands against it.`,
		Example: `  helio promote --plan
  helio promote --admin unix:/var/lib/helio/admin.sock
  helio promote --admin https://10.0.0.5:7481 --cert ops.crt --key ops.key --ca ca.crt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case output != "table" && output != "json":
				return usageError{fmt.Errorf("--output %q: want table or json", output)}
			case opts.BumpRevision < 0:
				return usageError{fmt.Errorf("--bump-revision %d: want a positive number, such as %d", opts.BumpRevision, int64(node.SuggestedBump))}
			}
			if opts.PeerURL != "" {
				if err := checkPeerURL(opts.PeerURL); err != nil {
					return usageError{fmt.Errorf("--peer-url %q: %w", opts.PeerURL, err)}
				}
			}
			if plan {
				if admin.use = adminReads; admin.admin == "" {
					admin.admin = "http://" + defaultAdmin
				}
			}
			client, err := admin.client()
			if err != nil {
				return err
			}
			defer client.close()
			if plan {
				return showPlan(cmd.Context(), client, std, opts, output)
			}
			return runPromote(cmd.Context(), client, std, opts, output)
		},
	}
	admin.add(cmd, adminChanges)
	fl := cmd.Flags()
	fl.Lookup("admin").Usage += "; --plan asks http://" + defaultAdmin + " unless told otherwise"
	fl.BoolVar(&plan, "plan", false, "show what would happen, and change nothing")
	fl.BoolVar(&opts.Force, "force", false, "promote although the source answers or may answer, revisions are on their way, users and roles are outdated, or the node is diverged")
	fl.Int64Var(&opts.BumpRevision, "bump-revision", 0, "leave out that many revisions, so that no client sees one twice; --plan says when")
	fl.StringVar(&opts.PeerURL, "peer-url", "", "where members will reach the etcd, http(s)://host:port; empty: port 2380 of the host that clients are told")
	fl.StringVarP(&output, "output", "o", "table", "table or json")
	addConfigFlag(cmd)
	return cmd
}

// fetchPlan asks a node for its plan.
func fetchPlan(ctx context.Context, client *adminClient, opts node.PromoteOptions) ([]byte, node.Plan, error) {
	query := url.Values{}
	if opts.BumpRevision != 0 {
		query.Set("bump_revision", strconv.FormatInt(opts.BumpRevision, 10))
	}
	if opts.PeerURL != "" {
		query.Set("peer_url", opts.PeerURL)
	}
	var plan node.Plan
	raw, err := client.ask(ctx, http.MethodGet, "/v1/promotion?"+query.Encode(), nil, planPatience)
	if err != nil {
		return nil, plan, err
	}
	if err := json.Unmarshal(raw, &plan); err != nil || plan.Cluster == "" {
		return nil, plan, fmt.Errorf("%s answers what is no plan (%v): is it a helio node?", client.admin, err)
	}
	return raw, plan, nil
}

func showPlan(ctx context.Context, client *adminClient, std stdio, opts node.PromoteOptions, output string) error {
	asking, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-time.After(promoteEvery):
			fmt.Fprintln(std.err, sayAsking)
		case <-asking.Done():
		}
	})
	raw, plan, err := fetchPlan(ctx, client, opts)
	stop()
	watcher.Wait()
	if err != nil {
		return err
	}
	switch {
	case output == "json":
		_, err = std.out.Write(raw)
	case plan.Promoted != nil:
		err = printPromoted(std.out, *plan.Promoted, plan, "This node is promoted already: there is nothing to plan.")
	default:
		err = printPlan(std.out, plan)
	}
	return err
}

// runPromote promotes, and says meanwhile what is being done.
func runPromote(ctx context.Context, client *adminClient, std stdio, opts node.PromoteOptions, output string) error {
	talk := newScreen(std.err)
	watching, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { sayPromoting(watching, client, talk) })
	raw, err := client.ask(ctx, http.MethodPost, "/v1/promote", opts, promotePatience)
	stop()
	watcher.Wait()
	if err != nil {
		return promotionError(err)
	}
	var rec node.Promotion
	if err := json.Unmarshal(raw, &rec); err != nil || rec.State != promote.Promoted {
		return fmt.Errorf("%s answers what is no promotion (%v): is it a helio node?", client.admin, err)
	}
	if output == "json" {
		_, err := std.out.Write(raw)
		return err
	}
	_, plan, err := fetchPlan(ctx, client, node.PromoteOptions{})
	if err != nil {
		return fmt.Errorf("promoted at revision %d, but then: %w", rec.Revision, err)
	}
	headline := ""
	if rec.Before {
		headline = "This node is promoted already: nothing was done."
	}
	return printPromoted(std.out, rec.Record, plan, headline)
}

// sayAsking is said when it takes long to find out whether there still is a source.
const sayAsking = "asking whether the etcd that it mirrors answers, which takes some seconds if it does not"

// sayPromoting says each step once, until ctx ends.
func sayPromoting(ctx context.Context, client *adminClient, talk *screen) {
	tick := time.NewTicker(promoteEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		raw, err := client.ask(ctx, http.MethodGet, "/v1/status", nil, adminTimeout)
		if err != nil {
			continue // the answer to the promotion says more
		}
		list, err := heliograph.ParseStatuses(raw)
		if err != nil || len(list) == 0 {
			continue
		}
		switch now := list[0]; {
		case now.Status == heliograph.Promoting && now.Why != said:
			said = now.Why
			fmt.Fprintf(talk, "promoting: %s\n", said)
		case now.Status != heliograph.Promoting && now.Status != heliograph.Promoted && said == "":
			said = sayAsking
			fmt.Fprintln(talk, sayAsking)
		}
	}
}

// promotionError is the node's own sentence where it has refused.
func promotionError(err error) error {
	if u, ok := errors.AsType[*unanswered](err); ok && u.heard {
		return fmt.Errorf("%w; the node may be promoted all the same, now or when it is started again, and nothing takes that back: "+
			"helio status shows it", err)
	}
	refused, ok := errors.AsType[*adminRefusal](err)
	if !ok {
		return err
	}
	var why struct {
		Error string `json:"error"`
	}
	if refused.code == http.StatusConflict && json.Unmarshal(refused.body, &why) == nil && why.Error != "" {
		return errors.New(why.Error)
	}
	return err
}

// contact says when the source was last heard from, and if that is of no use because it
// has lost its own, also how far back everything is known.
func contact(p node.Plan) string {
	s := "last contact " + ago(p.LastContactMS)
	if p.StalenessMS > p.LastContactMS+5000 {
		s += "; what was written since " + ago(p.StalenessMS) + " is not known there"
	}
	return s
}

func printPlan(out io.Writer, p node.Plan) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("NODE", "%s/%s, %s", p.Cluster, p.Database, statusPhrase(p.Status, p.Why))
	if p.Role == heliograph.RoleSource {
		row("", "It is a source node: promoted, it takes the place of its own etcd, which must not come back")
	}
	if p.Origin != "" {
		row("ORIGIN", "%s", p.Origin)
	}
	row("ENDS AT", "revision %d", p.AppliedRevision)
	switch {
	case p.MissingRevisions < 0:
		row("MISSING", "unknown: nothing that counts was heard of the source's newest revision")
	case p.MissingRevisions == 0:
		row("MISSING", "none of those that are known, up to revision %d", p.LastKnownRevision)
	default:
		row("MISSING", "%d revisions: the source is known to have %d", p.MissingRevisions, p.LastKnownRevision)
	}
	switch {
	case p.OriginAnswers:
		row("SOURCE", "its etcd answers")
	case p.OriginAsked:
		row("SOURCE", "nothing answers; %s", contact(p))
		row("", "%s", p.OriginWhy)
	default:
		row("SOURCE", "it is not known whether its etcd answers; %s", contact(p))
		row("", "It may live: %s", p.OriginWhy)
	}
	verified := "never"
	if p.VerifiedAgeMS >= 0 {
		verified = fmt.Sprintf("equal at revision %d, %s", p.VerifiedRevision, ago(p.VerifiedAgeMS))
	}
	if p.VerifyResult != "" && p.VerifyResult != heliograph.VerifyEqual {
		verified += fmt.Sprintf("; the last try is %s: %s", p.VerifyResult, p.VerifyWhy)
	}
	row("VERIFIED", "%s", verified)
	leases := fmt.Sprint(p.Leases)
	if p.Leases > 0 {
		leases += ", which start again with their full TTL"
	}
	if p.LeasesUnknownTTL > 0 {
		leases += fmt.Sprintf(" (%d of them with %s, since theirs is not known)", p.LeasesUnknownTTL, promote.DefaultLeaseTTL)
	}
	row("LEASES", "%s", leases)
	switch {
	case p.UsersOutdated != "":
		row("USERS", "may not be the source's: %s", p.UsersOutdated)
	case p.AccessControl:
		row("USERS", "and roles, as at the source")
	}
	row("DATABASE", "%s", humanize.IBytes(uint64(max(0, p.DatabaseBytes))))
	row("ETCD", "%s, whatever the source's is", p.EtcdVersion)
	if p.AppliedRevision > 0 {
		row("TAKES", "about %s, estimated from %s", (time.Duration(p.EstimateMS) * time.Millisecond).Round(time.Second), p.EstimateFrom)
	}
	row("CLIENTS", "%s%s", strings.Join(p.ClientURLs, ", "), clientNeeds(p))
	row("MEMBERS", "%s%s", p.PeerURL, peersListen(p))
	if p.AppliedRevision > 0 {
		advice := "not needed: "
		if p.Bump.Needed {
			advice = fmt.Sprintf("advised, --bump-revision %d: ", p.Bump.Revision)
		}
		row("BUMP", "%s%s", advice, p.Bump.Why)
		row("", "It costs: %s", p.Bump.Cost)
	}
	if len(p.Refusals) == 0 {
		row("REFUSED", "no: helio promote would promote it")
	}
	for _, r := range p.Refusals {
		with := "even with --force"
		if r.Forcible {
			with = "without --force"
		}
		row("REFUSED", "%s: %s", with, r.Reason)
	}
	return w.Flush()
}

func statusPhrase(s heliograph.State, why string) string {
	if why == "" {
		return s.String()
	}
	return fmt.Sprintf("%s (%s)", s, why)
}

// ago prints an age in milliseconds; -1 is none.
func ago(ms int64) string {
	if ms < 0 {
		return "unknown"
	}
	return (time.Duration(ms) * time.Millisecond).Round(100*time.Millisecond).String() + " ago"
}

func clientNeeds(p node.Plan) string {
	if len(p.ClientURLs) == 0 {
		return "none are served: the node was started without --listen-clients"
	}
	var needs []string
	if p.ClientCertificates {
		needs = append(needs, "a certificate of --client-ca")
	}
	if p.AccessControl {
		needs = append(needs, "user and password, as at the source")
	}
	if len(needs) == 0 {
		return ""
	}
	return " (every client needs " + strings.Join(needs, ", and ") + ")"
}

func peersListen(p node.Plan) string {
	var notes []string
	if p.PeerListen != "" && p.PeerListen != p.PeerURL {
		notes = append(notes, "listening on "+p.PeerListen)
	}
	if p.PeerWarning != "" {
		notes = append(notes, p.PeerWarning)
	}
	if len(notes) == 0 {
		return ""
	}
	return " (" + strings.Join(notes, "; ") + ")"
}

// printPromoted says what a promotion has made, and what to do next.
func printPromoted(out io.Writer, rec promote.Record, p node.Plan, headline string) error {
	if headline != "" {
		fmt.Fprintf(out, "%s\n\n", headline)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("PROMOTED", "%s/%s, by %s at %s", rec.Cluster, rec.Database, rec.By, rec.At.Format(time.RFC3339))
	row("FORKED FROM", "%s at revision %d", rec.Origin, rec.Revision)
	row("FIRST WRITE", "revision %d", rec.First())
	if rec.Bump > 0 {
		row("LEFT OUT", "%d revisions before it (--bump-revision)", rec.Bump)
	}
	row("ETCD CLUSTER", "%s, member %s, etcd %s", rec.EtcdID, rec.Name, p.EtcdVersion)
	switch {
	case rec.MissingRevisions < 0:
		row("LOST", "unknown: what the source has written after revision %d", rec.Revision)
	case rec.MissingRevisions == 0:
		row("LOST", "nothing that was known; what the source has written after the last contact is not here")
	default:
		row("LOST", "%d revisions, up to %d, that were known; and what the source has written since", rec.MissingRevisions, rec.LastKnownRevision)
	}
	row("LEASES", "%d, with their full TTL again", rec.Leases)
	for _, r := range p.Refusals {
		row("REFUSED", "%s", r.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	client := strings.Join(p.ClientURLs, ",")
	_, err := fmt.Fprintf(out, `
Next:
  point clients at   %[1]s%[2]s
  grow the cluster   etcdctl --endpoints %[1]s member add NAME --peer-urls http://HOST:2380
  mirror it          helio source --cluster %[3]s --etcd %[1]s ...
`, client, clientNeeds(p), rec.Cluster)
	return err
}
