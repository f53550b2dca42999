package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// file is a database file: its bytes, and those that hold data.
type file struct{ total, inUse int64 }

func (f file) String() string {
	return fmt.Sprintf("%.1f MiB (%.1f in use)", float64(f.total)/(1<<20), float64(f.inUse)/(1<<20))
}

// fileOf asks etcd, or a node, for its file.
func fileOf(t *testing.T, client *clientv3.Client) file {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	return file{s.DbSize, s.DbSizeInUse}
}

// awaitFreed waits until about as much of the node's file is in use as of etcd's.
// Pages that a compaction has freed count as free after the next commits, for which
// something has to be written.
func awaitFreed(t *testing.T, etcd *clientv3.Client, n *heliotest.Node, slack int64) {
	t.Helper()
	client := n.Client()
	n.WaitStatus("freed by compaction", time.Minute, func(heliograph.Status) bool {
		put(t, etcd, "churn/", 1)
		return fileOf(t, client).inUse <= 3*fileOf(t, etcd).inUse/2+slack
	})
}

// Row 26: a small set of keys is overwritten for as long as it takes to write many
// times what it holds, and etcd is compacted again and again. The replicas' files
// stay about as big as etcd's own: what compaction frees is used again. A mirror that
// keeps the history, in the same run, shows what they would be otherwise.
func TestRow26MirrorFileGrows(t *testing.T) {
	t.Parallel()
	const (
		rounds    = 12
		settled   = 3    // rounds until the files have their size
		perRound  = 2500 // revisions
		keys      = 500
		valueSize = 1 << 10
		kept      = 500     // revisions
		slack     = 1 << 20 // bytes
	)
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	mirror := pki.Mirror("prod-eu", source, false)
	hoarder := pki.Mirror("prod-asia", source, false, "--history", "1h")
	for _, n := range []*heliotest.Node{source, mirror, hoarder} {
		n.WaitFollowing()
	}
	files := []*struct {
		name   string
		client *clientv3.Client
		early  int64 // bytes, when the files have their size
		file         // the most bytes that it had, the last in use
	}{
		{name: "etcd", client: client},
		{name: "source", client: source.Client()},
		{name: "mirror", client: mirror.Client()},
		{name: "mirror that keeps history", client: hoarder.Client()},
	}
	value := string(make([]byte, valueSize))
	for round := range rounds {
		each(t, perRound, func(ctx context.Context, i int) error {
			_, err := client.Put(ctx, fmt.Sprint("churn/", i%keys), value)
			return err
		})
		rev := etcd.Revision(t)
		if _, err := client.Compact(t.Context(), rev-kept, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		source.WaitCompacted(rev - kept)
		mirror.WaitCompacted(rev - kept)
		hoarder.WaitApplied(rev)
		for _, f := range files {
			now := fileOf(t, f.client)
			f.file = file{max(f.total, now.total), now.inUse}
			if round < settled {
				f.early = f.total
			}
		}
	}
	const written = rounds * perRound * valueSize
	for _, f := range files {
		t.Logf("%d MiB in %d revisions: the file of %s is %s", written>>20, rounds*perRound, f.name, f.file)
	}
	truth, kept1h := files[0], files[3]
	for _, f := range files[1:3] {
		if f.total > 3*truth.total/2+slack {
			t.Errorf("%s: the file was up to %s, etcd's %s", f.name, f.file, truth.file)
		}
		if f.total > 5*f.early/4+slack {
			t.Errorf("%s: the file goes on growing, from %d to %d bytes: what is freed is not used again", f.name, f.early, f.total)
		}
		if written < 4*f.total {
			t.Errorf("%s: %d bytes were written to a file of %d: too little traffic to prove anything", f.name, written, f.total)
		}
		if kept1h.total < 4*f.total {
			t.Errorf("%s: a file of %s is not less than what all history takes, %s", f.name, f.file, kept1h.file)
		}
	}
	heliotest.RequireEqual(t, etcd, etcd.Revision(t), source, mirror)
	awaitFreed(t, client, source, slack)
	awaitFreed(t, client, mirror, slack)
}
