package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/faulttest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/store"
)

// machine is a node that has a disk of its own.
type machine struct {
	*heliotest.Node
	disk *faulttest.Disk
}

const diskBytes = 1 << 30 // of a sparse file

// onDisk returns a machine whose node make has made and has not started. make gets
// what makes nodes that have the disk, and the flags that put their data there.
func onDisk(t *testing.T, pki *heliotest.PKI, binary string, make func(*heliotest.PKI, ...string) *heliotest.Node) *machine {
	t.Helper()
	disk := faulttest.NewDisk(t, diskBytes)
	n := make(pki.With(t, disk.Program(binary)), "--data-dir", disk.Path("data"))
	n.DataDir = disk.Path("data")
	return &machine{n, disk}
}

// cut takes the power away from machines, at one moment, and then their processes.
func cut(victims []*machine) {
	for _, m := range victims {
		m.disk.Cut(m.PID())
	}
	for _, m := range victims {
		m.Kill()
		m.disk.WaitDetached()
	}
}

// found is what a disk holds after its power was cut.
type found struct {
	rev       int64
	hash      uint32
	compacted int64
}

// find opens the replica on a copy of the disk, as the node would.
func (m *machine) find(t *testing.T) (f found, err error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	m.disk.Run("cp", "-r", m.DataDir, dir)
	st, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if err := st.Damaged(); err != nil {
		return f, err
	}
	h, err := st.HashKV(t.Context(), 0)
	return found{h.HashRevision, h.Hash, h.CompactRevision}, err
}

// whole returns why what was found is not a whole revision of etcd's, at or above
// the one that was promised to be durable.
func (f found) whole(t *testing.T, etcd *etcdtest.Cluster, promised int64) error {
	t.Helper()
	if f.rev < promised {
		return fmt.Errorf("it is at revision %d, but %d was said to be durable", f.rev, promised)
	}
	if hash, compacted := etcd.HashKV(t, f.rev); f.hash != hash || f.compacted != compacted {
		return fmt.Errorf("HashKV %08x at revision %d, compacted at %d; etcd has %08x, compacted at %d",
			f.hash, f.rev, f.compacted, hash, compacted)
	}
	return nil
}

// promised returns the revision that the node says is durable, and those that the
// mirrors have told it are, by cluster. Of a mirror that was cut off there may be a
// session that has not ended yet, beside its present one.
func promised(t *testing.T, n *heliotest.Node) (own int64, mirrors map[string]int64) {
	t.Helper()
	s, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	mirrors = make(map[string]int64)
	for _, d := range s.Downstreams {
		mirrors[string(d.Cluster)] = max(mirrors[string(d.Cluster)], d.DurableRevision)
	}
	return s.DurableRevision, mirrors
}

// awaitPromise waits until every mirror has told its source that rev is durable.
func awaitPromise(t *testing.T, source *heliotest.Node, rev int64, mirrors ...*machine) {
	t.Helper()
	source.WaitStatus(fmt.Sprintf("told of durable revision %d", rev), 2*time.Minute, func(s heliograph.Status) bool {
		n := 0
		for _, d := range s.Downstreams {
			if d.DurableRevision >= rev {
				n++
			}
		}
		return n == len(mirrors)
	})
}

// some returns at least one of the machines.
func some(rng *rand.Rand, machines []*machine) (chosen []*machine) {
	bits := 1 + rng.IntN(1<<len(machines)-1)
	for i, m := range machines {
		if bits&(1<<i) != 0 {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

// Row 11: the power fails, of the source node's machine, of a mirror's, or of several
// at once. What a mirror has told its source to be durable is there afterwards, and
// what is there is whole revisions of etcd's; following goes on where it was.
func TestRow11PositionDurableDataNot(t *testing.T) {
	t.Parallel()
	const rounds = 4
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	binary := heliotest.Binary(t)
	source := onDisk(t, pki, binary, func(p *heliotest.PKI, flags ...string) *heliotest.Node {
		return p.NewSource("prod-us", etcd.Endpoints(), flags...)
	})
	mirrors := make([]*machine, 2)
	for i, mode := range []heliograph.Mode{heliograph.Async, heliograph.Sync} {
		mirrors[i] = onDisk(t, pki, binary, func(p *heliotest.PKI, flags ...string) *heliotest.Node {
			return p.NewMirror("prod-"+string(mode), source.Node, false, append(flags, "--mode", string(mode))...)
		})
	}
	machines := append([]*machine{source}, mirrors...)
	etcdtest.Fill(t, client, 500)
	for _, m := range machines {
		m.Start()
	}
	for _, m := range machines {
		m.WaitFollowing()
	}

	rng := rand.New(rand.NewPCG(seed(t), 11))
	started := func() *etcdtest.Load {
		return etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Workers: 4, Seed: rng.Uint64(), Deletes: true, Txns: true, Leases: true})
	}
	for round := range rounds {
		load := started()
		awaitPromise(t, source.Node, etcd.Revision(t)+100, mirrors...)
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond) // the random moment
		victims := machines                                         // the whole site at first
		if round > 0 {
			victims = some(rng, machines)
		}
		own, told := promised(t, source.Node)
		cut(victims)
		load.Stop() // so that rounds do not grow
		for _, m := range victims {
			want := own
			if m != source {
				want = told[m.Cluster]
			}
			f, err := m.find(t)
			if err == nil {
				err = f.whole(t, etcd, want)
			}
			if err != nil {
				t.Fatalf("round %d: the power of %s was cut: %v", round, m.Name(), err)
			}
			t.Logf("round %d: %s has revision %d, durable was said to be %d", round, m.Name(), f.rev, want)
		}
		head := etcd.Revision(t)
		for _, m := range victims {
			m.Start()
		}
		for _, m := range machines {
			m.WaitApplied(head)
		}
	}
	rev := stop(t, etcd, started())
	heliotest.RequireEqual(t, etcd, rev, source.Node, mirrors[0].Node, mirrors[1].Node)
	for _, m := range machines {
		if n := m.Snapshots(); n != 1 {
			t.Errorf("%s: %d snapshots, want one: no history was gone", m.Name(), n)
		}
	}
}

// A build that never asks the disk to keep anything breaks what it has promised: the
// checks of row 11 find it at the first cut.
func TestRow11PlantedBugIsFound(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	binary := heliotest.Mutant(t, "store/contents.go", "cfg.Timeout = timeout\n", "cfg.Timeout, cfg.UnsafeNoFsync = timeout, true\n")
	mirror := onDisk(t, pki, binary, func(p *heliotest.PKI, flags ...string) *heliotest.Node {
		return p.NewMirror("prod-eu", source, false, flags...)
	})
	mirror.Start()
	mirror.WaitFollowing()
	awaitPromise(t, source, etcdtest.Fill(t, client, 2000), mirror)
	_, told := promised(t, source)
	cut([]*machine{mirror})
	f, err := mirror.find(t)
	if err == nil {
		err = f.whole(t, etcd, told[mirror.Cluster])
	}
	if err == nil {
		t.Fatalf("nothing is missing at revision %d: either the cut loses nothing, or the checks see nothing", f.rev)
	}
	t.Log(err)
}
