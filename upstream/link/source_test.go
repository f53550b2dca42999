package link_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
	"github.com/heliograph/heliograph/wire"
)

// pki is a CA of the test's own.
type pki struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "link test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, p.key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.pool.AddCert(p.cert)
	return p
}

func (p *pki) issue(t *testing.T, name string, lifetime time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, p.cert, key.Public(), p.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (p *pki) server(t *testing.T, name string, lifetime time.Duration) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPN}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{p.issue(t, name, lifetime)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: p.pool,
	}
}

func (p *pki) client(t *testing.T) *tls.Config {
	return &tls.Config{RootCAs: p.pool, Certificates: []tls.Certificate{p.issue(t, nodeID, time.Hour)}}
}

// script is what the source does with one connection, from the hello on.
type script func(c *conn)

// source is a scripted source over real QUIC. The first connection runs the
// first script, and so on; the last one runs for all that follow.
type source struct {
	bell    *bell
	addr    string
	scripts []script

	mu    sync.Mutex
	conns []*conn
	at    []time.Time // of each hello
}

// conn is the source's side of one connection.
type conn struct {
	*quic.Conn
	t       *testing.T
	bell    *bell
	control *quic.Stream
	frames  *wire.Reader
	hello   wire.Hello

	mu     sync.Mutex
	acks   []wire.Ack
	ackAt  []time.Time
	beats  []wire.Heartbeat
	reads  []uint64
	checks []uint64 // verify requests
	bye    *wire.Goodbye
	silent bool // sends no heartbeats
	work   sync.WaitGroup
}

func newSource(t *testing.T, b *bell, conf *tls.Config, socket net.PacketConn, scripts ...script) *source {
	t.Helper()
	transport := &quic.Transport{Conn: socket}
	listener, err := transport.Listen(conf, &quic.Config{MaxIncomingStreams: 1, MaxIncomingUniStreams: -1, MaxIdleTimeout: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	s := &source{bell: b, addr: socket.LocalAddr().String(), scripts: scripts}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	work.Go(func() {
		for i := 0; ; i++ {
			q, err := listener.Accept(ctx)
			if err != nil {
				return
			}
			c := &conn{Conn: q, t: t, bell: b}
			play := s.scripts[min(i, len(s.scripts)-1)]
			work.Go(func() {
				defer c.work.Wait()
				defer func() { _ = c.CloseWithError(0, "") }()
				if !c.greet() {
					return
				}
				s.mu.Lock()
				s.conns, s.at = append(s.conns, c), append(s.at, time.Now())
				s.mu.Unlock()
				b.ring()
				play(c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		for i := range s.count() {
			_ = s.conn(i).CloseWithError(0, "")
		}
		_ = transport.Close() // and those that never said hello
		work.Wait()
		_ = socket.Close()
	})
	return s
}

func (s *source) count() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.conns) }

func (s *source) conn(i int) *conn { s.mu.Lock(); defer s.mu.Unlock(); return s.conns[i] }

// last waits for a connection and returns the newest.
func (s *source) last(t *testing.T) *conn {
	t.Helper()
	s.bell.until(t, "somebody connects", func() bool { return s.count() > 0 })
	return s.conn(s.count() - 1)
}

// greet reads the hello.
func (c *conn) greet() bool {
	stream, err := c.AcceptStream(c.Context())
	if err != nil {
		return false
	}
	c.control, c.frames = stream, wire.NewReader(stream, wire.Control)
	kind, payload, err := c.frames.Next()
	if c.Context().Err() != nil {
		return false // the test is over
	}
	if err != nil || kind != wire.TypeHello {
		c.t.Errorf("first frame: %v %v", kind, err)
		return false
	}
	if c.hello, err = wire.DecodeHello(payload); err != nil {
		c.t.Error(err)
		return false
	}
	return true
}

// ackAt is the answer of a source that is at revision head.
func helloAck(head int64) wire.HelloAck {
	return wire.HelloAck{
		Accepted: true, SourceClusterID: "prod-us", SnapshotLSN: wire.NoSnapshot,
		HeadLSN: head, Origin: origin.String(), NodeID: "source-1", Path: []string{"source-1"}, HeartbeatMS: 500,
	}
}

// send writes a control message.
func (c *conn) send(m wire.Message) { _, _ = c.control.Write(m.AppendFrame(nil)) }

// refuse answers with a code and waits for the mirror to go.
func (c *conn) refuse(code heliograph.Code, detail string) {
	c.send(wire.HelloAck{ErrorCode: code, ErrorDetail: detail, SourceClusterID: "prod-us", SnapshotLSN: wire.NoSnapshot})
	c.leave(code, detail)
}

// goodbye ends an accepted session.
func (c *conn) goodbye(code heliograph.Code, detail string) {
	c.send(wire.Goodbye{Code: code, Detail: detail})
	c.leave(code, detail)
}

func (c *conn) leave(code heliograph.Code, detail string) {
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-c.Context().Done():
	case <-t.C:
	}
	_ = c.CloseWithError(quic.ApplicationErrorCode(code), detail)
}

// accept answers, and from then on records control frames and sends heartbeats.
func (c *conn) accept(ack wire.HelloAck) {
	c.send(ack)
	c.work.Go(c.listen)
	if !c.silent {
		c.work.Go(func() {
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-c.Context().Done():
					return
				case <-tick.C:
					c.send(wire.Heartbeat{HeadLSN: ack.HeadLSN, CompactLSN: ack.CompactLSN, StalenessMS: -1})
				}
			}
		})
	}
}

func (c *conn) listen() {
	for {
		kind, payload, err := c.frames.Next()
		if err != nil {
			return
		}
		c.mu.Lock()
		switch kind {
		case wire.TypeAck:
			a, err := wire.DecodeAck(payload)
			if err != nil {
				c.t.Error(err)
			}
			c.acks, c.ackAt = append(c.acks, a), append(c.ackAt, time.Now())
		case wire.TypeHeartbeat:
			h, err := wire.DecodeHeartbeat(payload)
			if err != nil {
				c.t.Error(err)
			}
			c.beats = append(c.beats, h)
		case wire.TypeReadIndex:
			r, err := wire.DecodeReadIndex(payload)
			if err != nil {
				c.t.Error(err)
			}
			c.reads = append(c.reads, r.ID)
		case wire.TypeVerify:
			v, err := wire.DecodeVerify(payload)
			if err != nil {
				c.t.Error(err)
			}
			c.checks = append(c.checks, v.ID)
		case wire.TypeGoodbye:
			g, err := wire.DecodeGoodbye(payload)
			if err != nil {
				c.t.Error(err)
			}
			c.bye = &g
		default:
			c.t.Errorf("the mirror sent a %s frame", kind)
		}
		c.mu.Unlock()
		c.bell.ring()
	}
}

// lastAck returns the newest ack, and how many there were.
func (c *conn) lastAck() (wire.Ack, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.acks) == 0 {
		return wire.Ack{}, 0
	}
	return c.acks[len(c.acks)-1], len(c.acks)
}

func (c *conn) asked() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]uint64(nil), c.reads...)
}

// bulk opens a bulk stream; a nil one swallows what is written after the end.
func (c *conn) bulk() *quic.SendStream {
	s, err := c.OpenUniStreamSync(c.Context())
	if err != nil {
		return nil
	}
	return s
}

func put(s *quic.SendStream, frames ...[]byte) {
	for _, f := range frames {
		if s != nil {
			_, _ = s.Write(f)
		}
	}
}

// hold waits until the connection ends.
func (c *conn) hold() { <-c.Context().Done() }

const chunkBytes = 1 << 10

// chunks are the frames of a snapshot: its chunks, then its end.
func chunks(rev int64, data []byte) [][]byte {
	var frames [][]byte
	for at := 0; at < len(data); at += chunkBytes {
		frames = append(frames, wire.AppendChunk(nil, int64(at), data[at:min(at+chunkBytes, len(data))], nil))
	}
	end := wire.SnapshotEnd{Rev: rev, Size: int64(len(data)), SHA256: sha256.Sum256(data)}
	return append(frames, end.AppendFrame(nil))
}

func snapshotAck(rev int64, data []byte) wire.HelloAck {
	ack := helloAck(rev)
	ack.SnapshotLSN, ack.SnapshotBytesTotal = uint64(rev), uint64(len(data))
	return ack
}

// giveSnapshot is a whole snapshot at rev.
func (c *conn) giveSnapshot(rev int64, data []byte) {
	s := c.bulk()
	put(s, chunks(rev, data)...)
	if s != nil {
		_ = s.Close()
	}
}

// world is a link with what it works on.
type world struct {
	t        *testing.T
	bell     *bell
	pki      *pki
	replica  *replica
	reporter *reporter
	cfg      link.Config
}

// newWorld is on the loopback, with waits of milliseconds.
func newWorld(t *testing.T) *world {
	w := plainWorld(t)
	w.cfg.BackoffBase, w.cfg.BackoffCap, w.cfg.SlowRetry = time.Millisecond, 10*time.Millisecond, 10*time.Millisecond
	w.cfg.Listen = func() (net.PacketConn, error) { return net.ListenPacket("udp", "127.0.0.1:0") }
	return w
}

func plainWorld(t *testing.T) *world {
	t.Helper()
	b := newBell()
	w := &world{t: t, bell: b, pki: newPKI(t), replica: newReplica(t, b), reporter: &reporter{bell: b}}
	client := w.pki.client(t)
	w.cfg = link.Config{
		Address: heliograph.Address{Cluster: "prod-us", Database: "default"},
		NodeID:  nodeID, Replica: w.replica, Reporter: w.reporter,
		TLS: func() *tls.Config { return client },
	}
	return w
}

// source adds a scripted source to the address.
func (w *world) source(scripts ...script) *source {
	w.t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.sourceOn(socket, w.pki.server(w.t, "prod-us", time.Hour), scripts...)
}

func (w *world) sourceOn(socket net.PacketConn, conf *tls.Config, scripts ...script) *source {
	w.t.Helper()
	s := newSource(w.t, w.bell, conf, socket, scripts...)
	w.cfg.Address.Hosts = append(w.cfg.Address.Hosts, s.addr)
	return s
}

// run starts the link; the test's end stops it and waits.
func (w *world) run() *running {
	w.t.Helper()
	l, err := link.New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &running{Link: l, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = l.Run(ctx)
		w.bell.ring()
	}()
	w.t.Cleanup(func() {
		cancel(nil)
		<-r.done
	})
	return r
}

// lost waits until that many losses have been reported and returns the last of
// them.
func (w *world) lost(n int) error {
	w.t.Helper()
	w.bell.until(w.t, "the link reports what is wrong", func() bool { return len(w.reporter.losses()) >= n })
	return w.reporter.losses()[n-1]
}

// applied waits until the replica has applied rev.
func (w *world) applied(rev int64) {
	w.t.Helper()
	w.bell.until(w.t, "a revision is applied", func() bool { return w.replica.Applied() >= rev })
	if got := w.replica.Applied(); got != rev {
		w.t.Fatalf("applied %d, want %d", got, rev)
	}
}
