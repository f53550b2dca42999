package bench

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
	"github.com/heliograph/heliograph/internal/proctest"
)

// replica is a copy of an etcd and what makes it: make-mirror and a destination
// etcd, or a source node and a mirror node.
type replica struct {
	c      *cell
	client *clientv3.Client  // of the copy
	copier *proctest.Process // etcdctl make-mirror, or the source node
	copy   *proctest.Process // the destination etcd, or the mirror node
	start  func()            // starts what does not run yet
	exact  bool              // HashKV can prove it equal to etcd, revision by revision
	offset int64             // etcd's revision minus the copy's, where both hold the same

	// complete reports whether the copy stands at etcd's revision and says so.
	complete func(revision int64) bool
	// prove fails the benchmark unless the copy is equal at etcd's revision.
	prove func(revision int64)
}

func startEtcd(c *cell, o options) *etcdtest.Cluster {
	c.Helper()
	return etcdtest.Start(c, etcdtest.Options{
		Fsync: o.fsync,
		Args:  []string{fmt.Sprintf("--quota-backend-bytes=%d", int64(quotaBytes))},
	})
}

// newMakeMirror returns `etcdctl make-mirror` to an empty etcd, which runs.
func newMakeMirror(c *cell, etcd *etcdtest.Cluster, o options) *replica {
	c.Helper()
	to := startEtcd(c, o)
	r := &replica{c: c, client: to.Client(c), copy: to.Member(0).Process}
	r.copier = proctest.New(c, "make-mirror", filepath.Join(c.TempDir(), "make-mirror.log"),
		etcdtest.Binary(c, "etcdctl"), "--endpoints="+etcd.Endpoints()[0], "make-mirror", to.Endpoints()[0])
	r.start = r.copier.Start
	r.complete = func(revision int64) bool {
		now, ok := r.applied()
		return ok && now >= revision
	}
	// Revisions, versions and leases differ: only keys and values can be equal.
	r.prove = func(int64) {
		c.Helper()
		want, keys := content(c, etcd.Client(c))
		got, copied := content(c, r.client)
		if got != want {
			c.Fatalf("make-mirror's copy differs: %d keys, etcd has %d", copied, keys)
		}
	}
	return r
}

// newHelio returns a fresh source node and a fresh mirror, which do not run.
func newHelio(c *cell, etcd *etcdtest.Cluster) *replica {
	c.Helper()
	pki := heliotest.NewPKI(c)
	source := pki.NewSource("prod-us", etcd.Endpoints())
	mirror := pki.NewMirror("prod-eu", source, false)
	r := &replica{c: c, exact: true, client: mirror.Client(), copier: source.Process, copy: mirror.Process}
	r.start = func() {
		source.Start()
		mirror.Start()
	}
	r.complete = func(revision int64) bool {
		r.check()
		s, err := mirror.Status()
		return err == nil && s.Status == heliograph.Following && s.AppliedRevision >= revision
	}
	r.prove = func(revision int64) {
		c.Helper()
		heliotest.RequireEqual(c, etcd, revision, source, mirror)
	}
	return r
}

// check fails the benchmark if a process of the copy has ended by itself.
func (r *replica) check() {
	r.c.Helper()
	for _, p := range []*proctest.Process{r.copier, r.copy} {
		if !p.Running() {
			continue
		}
		if err := p.Err(); err != nil {
			r.c.Fatal(err)
		}
	}
}

// applied returns how far the copy is, as etcd's revision. ok is false if it does
// not answer. What it has applied is what it shows to a serializable read.
func (r *replica) applied() (revision int64, ok bool) {
	r.c.Helper()
	r.check()
	revision, err := current(r.c.ctx, r.client)
	return revision + r.offset, err == nil
}

// mustApplied is applied for a copy that is known to answer.
func (r *replica) mustApplied() int64 {
	r.c.Helper()
	revision, ok := r.applied()
	if !ok {
		r.c.Fatal("the copy does not answer")
	}
	return revision
}

// reached reports whether the copy has applied that revision within limit.
func (r *replica) reached(revision int64, limit time.Duration) bool {
	r.c.Helper()
	return r.c.until(limit, 2*time.Millisecond, func() bool {
		now, ok := r.applied()
		return ok && now >= revision
	})
}

// follow starts the copying and returns when a new key has come through. Nothing
// else may write meanwhile.
func (r *replica) follow(client *clientv3.Client) {
	r.c.Helper()
	const key = "bench/marker"
	r.start()
	ctx, cancel := context.WithTimeout(r.c.ctx, startWait)
	defer cancel()
	put, err := client.Put(ctx, key, "")
	if err != nil {
		r.c.Fatal(err)
	}
	var revision int64
	if !r.c.until(startWait, 10*time.Millisecond, func() bool {
		r.check()
		resp, err := r.client.Get(ctx, key, clientv3.WithSerializable())
		if err != nil || len(resp.Kvs) == 0 {
			return false
		}
		revision = resp.Kvs[0].ModRevision
		return true
	}) {
		r.c.Fatal("the copy does not follow")
	}
	r.offset = put.Header.Revision - revision
}

// current returns a server's own revision, asking nobody else.
func current(ctx context.Context, client *clientv3.Client) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := client.Get(ctx, "bench/none", clientv3.WithSerializable(), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

// content returns a digest of all keys and values, and how many keys there are.
func content(c *cell, client *clientv3.Client) (digest [sha256.Size]byte, keys int) {
	c.Helper()
	const page = 2000
	ctx, cancel := context.WithTimeout(c.ctx, copyWait)
	defer cancel()
	h := sha256.New()
	var size [8]byte
	add := func(b []byte) {
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		h.Write(size[:])
		h.Write(b)
	}
	var revision int64
	for from := "\x00"; ; {
		resp, err := client.Get(ctx, from, clientv3.WithFromKey(), clientv3.WithLimit(page), clientv3.WithRev(revision))
		if err != nil {
			c.Fatalf("read all keys: %v", err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			add(kv.Key)
			add(kv.Value)
		}
		keys += len(resp.Kvs)
		if !resp.More {
			return [sha256.Size]byte(h.Sum(nil)), keys
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}
