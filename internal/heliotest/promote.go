package heliotest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/promote"
)

// promoteWait is how long a promotion, or the start of a promoted node, may take.
const promoteWait = 2 * time.Minute

// TryPromote runs `helio promote -o json` on the node, and returns its record, or
// what it says on stderr.
func (n *Node) TryPromote(args ...string) (promote.Record, error) {
	ctx, cancel := context.WithTimeout(n.tb.Context(), promoteWait)
	defer cancel()
	var rec promote.Record
	cmd := exec.CommandContext(ctx, Binary(n.tb), append([]string{"promote", "--admin", n.Socket(), "-o", "json"}, args...)...)
	var talk strings.Builder
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		return rec, fmt.Errorf("helio promote: %w: %s", err, talk.String())
	}
	return rec, json.Unmarshal(out, &rec)
}

// Promote promotes the node. A failure fails the test.
func (n *Node) Promote(args ...string) promote.Record {
	n.tb.Helper()
	rec, err := n.TryPromote(args...)
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name(), err)
	}
	return rec
}

// Plan returns what `helio promote --plan` says.
func (n *Node) Plan() node.Plan {
	n.tb.Helper()
	var plan node.Plan
	if err := json.Unmarshal([]byte(Run(n.tb, "promote", "--plan", "--admin", n.Admin, "-o", "json")), &plan); err != nil {
		n.tb.Fatal(err)
	}
	return plan
}

// WaitPromoted waits until the node is promoted, and its etcd takes writes.
func (n *Node) WaitPromoted() heliograph.Status {
	n.tb.Helper()
	serves := false // from then on the status is that of its etcd
	return n.WaitStatus("promoted", promoteWait, func(s heliograph.Status) bool {
		served := serves
		serves = s.Status == heliograph.Promoted && n.Ready() == nil
		return served && serves
	})
}

// Ready returns why the node is not ready.
func (n *Node) Ready() error {
	_, err := n.get("/readyz")
	return err
}

// Put writes to the node's etcd API and returns the revision.
func (n *Node) Put(client *clientv3.Client, key, value string) int64 {
	n.tb.Helper()
	ctx, cancel := context.WithTimeout(n.tb.Context(), answerWait)
	defer cancel()
	resp, err := client.Put(ctx, key, value)
	if err != nil {
		n.tb.Fatal(errors.Join(fmt.Errorf("%s does not take a write", n.Name()), err))
	}
	return resp.Header.Revision
}

// Dir returns the folder of the CA and of the certificates that it has issued.
func (p *PKI) Dir() string { return p.dir }
