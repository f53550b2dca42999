package heliotest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/heliograph/heliograph"
)

// Verify asks the node to verify, and returns the result.
func (n *Node) Verify() heliograph.Verification {
	n.tb.Helper()
	ctx, cancel := context.WithTimeout(n.tb.Context(), followWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.Admin+"/v1/verify", nil)
	if err != nil {
		n.tb.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.tb.Fatal(err)
	}
	defer resp.Body.Close()
	var v heliograph.Verification
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || resp.StatusCode != http.StatusOK {
		n.tb.Fatalf("verify %s: %s, %v", n.Name(), resp.Status, err)
	}
	return v
}

// Resync has the node drop its replica and begin anew. A failure fails the test.
func (n *Node) Resync(args ...string) {
	n.tb.Helper()
	if err := n.TryResync(args...); err != nil {
		n.tb.Fatalf("%s: %v", n.Name(), err)
	}
}

// TryResync runs `helio resync` on the node, and returns what it says on stderr.
func (n *Node) TryResync(args ...string) error {
	ctx, cancel := context.WithTimeout(n.tb.Context(), answerWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(n.tb), append([]string{"resync", "--admin", n.Socket()}, args...)...)
	if talk, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("helio resync: %w: %s", err, talk)
	}
	return nil
}

// Socket returns the address of the node's admin socket.
func (n *Node) Socket() string { return "unix:" + filepath.Join(n.DataDir, "admin.sock") }

// WaitDiverged waits until the node is diverged, and returns its status.
func (n *Node) WaitDiverged() heliograph.Status {
	n.tb.Helper()
	return n.WaitStatus("diverged", followWait, func(s heliograph.Status) bool { return s.Status == heliograph.Diverged })
}

// MetricWith returns the sum of the series of a metric that have a label, written
// as in the exposition: name="value".
func (n *Node) MetricWith(name, label string) float64 {
	n.tb.Helper()
	b, err := n.get("/metrics")
	if err != nil {
		n.tb.Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, name+"{") || !strings.Contains(line, label) {
			continue
		}
		fields := strings.Fields(line)
		var v float64
		if _, err := fmt.Sscan(fields[len(fields)-1], &v); err != nil {
			n.tb.Fatalf("metric %q: %v", line, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		n.tb.Fatalf("%s has no metric %s with %s", n.Name(), name, label)
	}
	return sum
}
