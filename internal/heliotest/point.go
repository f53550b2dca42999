package heliotest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/proctest"
)

// Point kills a mirror, if it runs, and points it at another node for its next life,
// with its data as it is. Its log goes on. args are further flags.
func (n *Node) Point(from *Node, args ...string) {
	n.tb.Helper()
	if n.Running() {
		n.Kill()
	}
	i := slices.Index(n.flags, "--from")
	if i < 0 {
		n.tb.Fatalf("%s is no mirror", n.Name())
	}
	n.flags = append(slices.Clone(n.flags), args...)
	n.flags[i+1] = fmt.Sprintf("helio://%s/%s", from.Listen, from.Cluster)
	n.Process = proctest.New(n.tb, n.Name(), n.LogPath(), n.binary, append([]string{n.command}, n.flags...)...)
}

// Follows returns the cluster that the node's data directory says it follows.
func (n *Node) Follows() heliograph.ClusterID {
	n.tb.Helper()
	b, err := os.ReadFile(filepath.Join(n.DataDir, "node.json"))
	var id struct{ Source heliograph.ClusterID }
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		n.tb.Fatal(err)
	}
	return id.Source
}
