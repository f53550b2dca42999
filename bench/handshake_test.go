package bench

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/store"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

const (
	handshakes = 200 // in one round
	// aheadBy is how many revisions the mirror lacks: they stand in the block of
	// its newest one, so that the source has to read the history for the digest
	// that the mirror names.
	aheadBy = 200
)

var (
	handshakeCPU  = row{"processor per handshake, both sides together, ms", 2}
	handshakeTime = row{"time from the dial to the accepted mirror, median, ms", 2}
)

// bareQUIC is the column of connections without a hello.
const bareQUIC = "QUIC alone"

// BenchmarkHandshake connects a mirror again and again: TLS 1.3 over QUIC with
// client certificates, hello, the comparison of digests, ack, and the end of the
// connection. Both sides are in this process, so its processor time is that of
// both. Nothing is applied: the next handshake finds the same. Beside it the same
// connections are made without a word of the protocol.
func BenchmarkHandshake(b *testing.B) {
	o := readOptions(b)
	most := envInt(b, "BENCH_REVISIONS", 1_000_000, 100)
	var columns []string
	sizes := []int{most / 100, most / 10, most}
	for _, n := range sizes {
		columns = append(columns, number(float64(n), 0)+" revisions")
	}
	t := newTable("Handshake with digests", append(slices.Clone(columns), bareQUIC), []row{handshakeCPU, handshakeTime})
	facts := conditions(b, o)
	inCell(b, func(outer *cell) {
		var variants []variant
		for i, n := range sizes {
			h := newHandshake(outer, n)
			variants = append(variants, variant{columns[i], func(c *cell) { t.handshake(c, columns[i], h.once) }})
			if i == 0 {
				variants = append(variants, variant{bareQUIC, func(c *cell) { t.handshake(c, bareQUIC, h.bare(c)) }})
			}
		}
		rounds(b, o, variants)
	})
	show(b, facts, t)
	b.ReportMetric(t.get(handshakeCPU, columns[len(columns)-1]).median(), "cpu-ms")
}

func (t *table) handshake(c *cell, column string, once func(*cell) time.Duration) {
	c.Helper()
	var times samples
	before := ownCPU(c)
	for range handshakes {
		times = append(times, ms(once(c)))
	}
	t.add(handshakeCPU, column, ms(ownCPU(c)-before)/handshakes)
	t.add(handshakeTime, column, times.median())
}

// ownCPU is what this process has used so far.
func ownCPU(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// handshake is a source that serves a store, and a store that is a little behind.
type handshake struct {
	mirror *store.Store
	addr   net.Addr
	tls    *tls.Config // of the mirror
	server *tls.Config // of the source
}

// newHandshake makes both stores from an etcd file with so many revisions.
func newHandshake(c *cell, revisions int) *handshake {
	c.Helper()
	etcd := newEtcdFile(c)
	h := &handshake{}
	etcd.put(revisions)
	h.mirror = etcd.store(c)
	etcd.put(aheadBy)
	ahead := etcd.store(c)

	dir := c.TempDir()
	if err := certs.Init(dir, ""); err != nil {
		c.Fatal(err)
	}
	load := func(role heliograph.Role, name string) *certs.Credentials {
		files, err := certs.Issue(certs.IssueConfig{Dir: dir, Cluster: handshakeOrigin.Cluster, Role: role, Name: name})
		if err != nil {
			c.Fatal(err)
		}
		creds, err := certs.Load(files, certs.Config{})
		if err != nil {
			c.Fatal(err)
		}
		return creds
	}
	serving := load(heliograph.RoleSource, "source")
	h.server = serving.ServerTLS(wire.ALPN)
	h.tls = load(heliograph.RoleMirror, "mirror").ClientTLS(wire.ALPN, handshakeOrigin.Cluster)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		c.Fatal(err)
	}
	h.addr = socket.LocalAddr()
	srv, err := source.New(source.Config{
		Cluster: handshakeOrigin.Cluster, NodeID: "source", Replica: ahead,
		TLS: h.server, Identify: serving.PeerIdentity,
	})
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, socket) }()
	c.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.Error(err)
		}
	})
	return h
}

// once connects and ends the connection when the source has accepted the mirror.
func (h *handshake) once(c *cell) time.Duration {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), startWait)
	defer cancel()
	var accepted time.Time

	l, err := link.New(link.Config{
		Address: heliograph.Address{Hosts: []string{h.addr.String()}, Cluster: handshakeOrigin.Cluster, Database: handshakeOrigin.Database},
		NodeID:  "mirror", Replica: frozen{h.mirror, ctx}, Reporter: unheard{c},
		TLS: func() *tls.Config { return h.tls.Clone() },
		Joined: func() {
			accepted = time.Now()
			cancel()
		},
	})
	if err != nil {
		c.Fatal(err)
	}
	start := time.Now()
	if err := l.Run(ctx); accepted.IsZero() {
		c.Fatalf("not accepted: %v (%v)", err, context.Cause(ctx))
	}
	return accepted.Sub(start)
}

// bare returns what connects to a listener of its own, and ends the connection when that
// has accepted it.
func (h *handshake) bare(c *cell) func(*cell) time.Duration {
	c.Helper()
	listener, err := quic.ListenAddr("127.0.0.1:0", h.server, nil)
	if err != nil {
		c.Fatal(err)
	}
	accepted := make(chan *quic.Conn)
	var work sync.WaitGroup
	work.Go(func() {
		defer close(accepted)
		for {
			conn, err := listener.Accept(c.ctx)
			if err != nil {
				return
			}
			accepted <- conn
		}
	})
	c.Cleanup(func() {
		if err := listener.Close(); err != nil {
			c.Error(err)
		}
		work.Wait()
	})
	return func(c *cell) time.Duration {
		c.Helper()
		ctx, cancel := context.WithTimeout(c.Context(), startWait)
		defer cancel()
		start := time.Now()
		conn, err := quic.DialAddr(ctx, listener.Addr().String(), h.tls.Clone(), nil)
		if err != nil {
			c.Fatal(err)
		}
		<-accepted
		took := time.Since(start)
		if err := conn.CloseWithError(0, ""); err != nil {
			c.Error(err)
		}
		return took
	}
}

// frozen is a store that applies nothing until its connection ends.
type frozen struct {
	*store.Store
	ctx context.Context //nolint:containedctx // of the one connection that it is for
}

func (f frozen) Apply(heliograph.Batch) error {
	<-f.ctx.Done()
	return heliograph.ErrClosed
}

// unheard is a link's Reporter; only a refusal is told.
type unheard struct{ c *cell }

func (unheard) Connecting(string)              {}
func (unheard) Connected(string)               {}
func (unheard) Bootstrapping(int64, int64)     {}
func (unheard) Heard(int64, int64)             {}
func (unheard) Applied(int64)                  {}
func (unheard) Upstream(time.Duration, string) {}
func (u unheard) Lost(err error)               { u.c.Logf("lost: %v", err) }

var handshakeOrigin = heliograph.Origin{Cluster: "prod-us", Database: heliograph.DefaultDatabase, EtcdID: 0xe7cd}

// etcdFile is the storage of an etcd, without the etcd.
type etcdFile struct {
	c  *cell
	be backend.Backend
	kv mvcc.WatchableKV
}

func newEtcdFile(c *cell) *etcdFile {
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path, cfg.UnsafeNoFsync = filepath.Join(c.TempDir(), "etcd.db"), true
	be := backend.New(cfg)
	tx := be.BatchTx()
	tx.LockOutsideApply()
	for _, b := range schema.AllBuckets {
		tx.UnsafeCreateBucket(b)
	}
	tx.Unlock()
	e := &etcdFile{c: c, be: be, kv: mvcc.New(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})}
	c.Cleanup(func() {
		if err := errors.Join(e.kv.Close(), e.be.Close()); err != nil {
			c.Error(err)
		}
	})
	return e
}

// put makes n revisions of one put each, over 10,000 keys.
func (e *etcdFile) put(n int) {
	value := make([]byte, valueBytes)
	for i := range n {
		tx := e.kv.Write(traceutil.TODO())
		tx.Put(fmt.Appendf(nil, "key/%08d", i%10_000), value, lease.NoLease)
		tx.End()
	}
}

// store opens a store that holds a copy of the file.
func (e *etcdFile) store(c *cell) *store.Store {
	c.Helper()
	st, err := store.Open(store.Config{Dir: c.TempDir()})
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		if err := st.Close(); err != nil {
			c.Error(err)
		}
	})
	snap := e.be.Snapshot()
	defer snap.Close()
	r, err := st.ReceiveSnapshot(snap.Size())
	if err != nil {
		c.Fatal(err)
	}
	w := chunkWriter{r: r, sum: sha256.New()}
	if _, err := snap.WriteTo(&w); err != nil {
		c.Fatal(err)
	}
	if rev, err := r.Commit(w.size, [32]byte(w.sum.Sum(nil)), handshakeOrigin); err != nil || rev != e.kv.Rev() {
		c.Fatalf("revision %d, %v", rev, err)
	}
	return st
}

// chunkWriter hands to a snapshot's receiver what is written.
type chunkWriter struct {
	r    heliograph.SnapshotReceiver
	size int64
	sum  hash.Hash
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	if err := w.r.WriteChunk(w.size, p); err != nil {
		return 0, err
	}
	w.size += int64(len(p))
	return w.sum.Write(p)
}
