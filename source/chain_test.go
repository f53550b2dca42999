package source_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/store"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

// seed fills a store with an etcd file at revision 11: an etcd begins at 1.
func seed(t *testing.T, s *store.Store) {
	t.Helper()
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path, cfg.UnsafeNoFsync = filepath.Join(t.TempDir(), "etcd.db"), true
	be := backend.New(cfg)
	tx := be.BatchTx()
	tx.LockOutsideApply()
	for _, b := range schema.AllBuckets {
		tx.UnsafeCreateBucket(b)
	}
	tx.Unlock()
	kv := mvcc.New(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
	for i := range 10 {
		kv.Put([]byte{'a' + byte(i)}, []byte("seed"), lease.NoLease)
	}
	kv.Commit()
	kv.Close()
	be.Close()
	data, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.ReceiveSnapshot(int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WriteChunk(0, data); err != nil {
		t.Fatal(err)
	}
	if rev, err := r.Commit(int64(len(data)), sha256.Sum256(data), origin); err != nil || rev != 11 {
		t.Fatalf("revision %d, %v", rev, err)
	}
}

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// silent is a Reporter that nobody listens to.
type silent struct{ lost chan error }

func (silent) Connecting(string)              {}
func (silent) Connected(string)               {}
func (silent) Bootstrapping(int64, int64)     {}
func (silent) Heard(int64, int64)             {}
func (silent) Applied(int64)                  {}
func (silent) Upstream(time.Duration, string) {}
func (s silent) Lost(err error) {
	select {
	case s.lost <- err:
	default:
	}
}

// chain is a source with a real store, and mirrors that follow one another.
type chain struct {
	t  *testing.T
	ca *authority
}

// serve serves a store and returns where.
func (c *chain) serve(s *store.Store, node string, up func() source.Upstream) net.Addr {
	c.t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		c.t.Fatal(err)
	}
	srv, err := source.New(source.Config{
		Cluster: "prod-us", NodeID: node, Replica: s, Identify: identify, Upstream: up,
		TLS: &tls.Config{
			Certificates: []tls.Certificate{c.ca.issue(time.Hour, uri(heliograph.RoleRelay, node))},
			ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: c.ca.pool,
		},
		ReadIndex: func(context.Context) (int64, error) { return s.Applied(), nil },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(func(ctx context.Context) error { return srv.Serve(ctx, socket) })
	return socket.LocalAddr()
}

// follow makes a store follow what is served at an address.
func (c *chain) follow(s *store.Store, node string, at net.Addr) (*link.Link, chan error) {
	c.t.Helper()
	lost := make(chan error, 16)
	l, err := link.New(link.Config{
		Address: heliograph.Address{Hosts: []string{at.String()}, Cluster: "prod-us", Database: "default"},
		NodeID:  node, Replica: s, Reporter: silent{lost}, BackoffBase: 20 * time.Millisecond,
		TLS: func() *tls.Config {
			return &tls.Config{
				Certificates: []tls.Certificate{c.ca.issue(time.Hour, uri(heliograph.RoleRelay, node))},
				RootCAs:      c.ca.pool, ServerName: "prod-us", NextProtos: []string{wire.ALPN},
			}
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(l.Run)
	return l, lost
}

func (c *chain) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	c.t.Cleanup(func() { cancel(); <-done })
}

// TestChain: a real store serves a real mirror, which serves another, over real
// QUIC: a snapshot, then revisions, a compaction, and equal hashes.
func TestChain(t *testing.T) {
	t.Parallel()
	c := &chain{t, newAuthority(t)}
	top, middle, bottom := openStore(t), openStore(t), openStore(t)
	seed(t, top)
	records := newMemory(11) // the same revisions as the seed, and then ours
	first := c.serve(top, "node-top", nil)
	mid, _ := c.follow(middle, "node-middle", first)
	second := c.serve(middle, "node-middle", func() source.Upstream {
		return source.Upstream{Head: middle.Applied(), Path: mid.Path(), Staleness: -1}
	})
	low, _ := c.follow(bottom, "node-bottom", second)

	const revs = 400
	for range revs {
		records.put(2, 500)
		rev := records.Applied()
		if err := top.Apply(heliograph.Batch{Rev: rev, Records: records.batch(rev)}); err != nil {
			t.Fatal(err)
		}
	}
	same := func(s *store.Store) func() bool {
		return func() bool { return s.Applied() == 11+revs }
	}
	eventually(t, "the middle has everything", same(middle))
	eventually(t, "the bottom has everything", same(bottom))
	top.Compact(100)
	eventually(t, "the compaction came down", func() bool { return bottom.Compacted() == 100 })
	var sums []uint32
	for _, s := range []*store.Store{top, middle, bottom} {
		h, err := s.HashKV(t.Context(), 11+revs)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, h.Hash)
	}
	if sums[0] != sums[1] || sums[1] != sums[2] {
		t.Errorf("hashes %x", sums)
	}
	if rev, err := low.ReadIndex(t.Context()); err != nil || rev != 11+revs {
		t.Errorf("read index: %d, %v", rev, err)
	}
	eventually(t, "the path is known", func() bool {
		p := low.Path()
		return len(p) == 2 && p[0] == "node-top" && p[1] == "node-middle"
	})
}
