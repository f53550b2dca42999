package source_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second // for what must happen

// authority issues certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var pair tls.Certificate
	pair, a.key = a.sign(tmpl, tmpl, nil)
	a.cert = pair.Leaf
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (tls.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parentKey == nil {
		parentKey = key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, key
}

// issue returns a certificate for the URIs, which ends after life.
func (a *authority) issue(life time.Duration, uris ...string) tls.Certificate {
	a.t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"prod-us"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	pair, _ := a.sign(tmpl, a.cert, a.key)
	return pair
}

func uri(role heliograph.Role, name string) string {
	return heliograph.Identity{Domain: "test.local", Cluster: "prod-eu", Role: role, Name: name}.String()
}

func identify(cs tls.ConnectionState) (heliograph.Identity, time.Time, error) {
	leaf := cs.PeerCertificates[0]
	if len(leaf.URIs) != 1 {
		return heliograph.Identity{}, time.Time{}, errors.New("not exactly one URI")
	}
	id, err := heliograph.ParseIdentity(leaf.URIs[0].String())
	return id, leaf.NotAfter, err
}

// world is a source that serves a replica in memory on a local port.
type world struct {
	t       testing.TB
	ca      *authority
	replica *memory
	server  *source.Server
	metrics *prometheus.Registry
	addr    net.Addr
	stop    func() // ends Serve and waits for it
}

func start(t testing.TB, replica *memory, change func(*source.Config)) *world {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, socket, replica, change)
}

func startOn(t testing.TB, socket net.PacketConn, replica *memory, change func(*source.Config)) *world {
	t.Helper()
	w := &world{t: t, ca: newAuthority(t), replica: replica, metrics: prometheus.NewRegistry(), addr: socket.LocalAddr()}
	cfg := source.Config{
		Cluster: "prod-us", NodeID: "node-a", Replica: replica,
		TLS: &tls.Config{
			Certificates: []tls.Certificate{w.ca.issue(time.Hour, uri(heliograph.RoleSource, "s1"))},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    w.ca.pool,
		},
		Identify: identify,
		Upstream: func() source.Upstream {
			return source.Upstream{Head: replica.Applied(), Path: []string{"top"}}
		},
		ReadIndex: func(context.Context) (int64, error) { return replica.Applied(), nil },
		Metrics:   w.metrics,
		Silence:   time.Minute, // peers here speak when they have something to say
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.server, err = source.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(ctx, socket) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

// metric returns the value of a counter or gauge; labels are name, value pairs.
func (w *world) metric(name string, labels ...string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "heliograph_source_"+name {
			continue
		}
	metrics:
		for _, m := range f.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool {
					return l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}) {
					continue metrics
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return 0
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// peer is the other end: what a mirror does, by hand.
type peer struct {
	t       testing.TB
	conn    *quic.Conn
	control *quic.Stream
	frames  *wire.Reader // of control
	bulk    *wire.Reader // of entries
	within  func(time.Duration)
	unpack  wire.Decompressor
	next    int64 // revision
	build   *wire.Assembler
}

// connect dials with a certificate of a mirror of that name.
func (w *world) connect(name string) *peer {
	w.t.Helper()
	p, err := w.dial(w.ca.issue(time.Hour, uri(heliograph.RoleMirror, name)))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) dial(certs ...tls.Certificate) (*peer, error) {
	w.t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.dialFrom(socket, nil, certs...)
}

func (w *world) dialFrom(socket net.PacketConn, conf *quic.Config, certs ...tls.Certificate) (*peer, error) {
	w.t.Helper()
	transport := &quic.Transport{Conn: socket}
	w.t.Cleanup(func() { transport.Close(); socket.Close() })
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	conn, err := transport.Dial(ctx, w.addr, &tls.Config{
		Certificates: certs, RootCAs: w.ca.pool, ServerName: "prod-us", NextProtos: []string{wire.ALPN},
	}, conf)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { conn.CloseWithError(0, "test over") })
	return &peer{t: w.t, conn: conn}, nil
}

func hello(at int64) wire.Hello {
	h := wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", LastAppliedLSN: at, ProtocolVersion: 1, NodeID: "node-m"}
	if at > 0 {
		h.Origin = origin.String()
	}
	return h
}

// send writes raw bytes to the control stream, and opens it before the first.
func (p *peer) send(b []byte) {
	p.t.Helper()
	if p.control == nil {
		var err error
		if p.control, err = p.conn.OpenStreamSync(p.t.Context()); err != nil {
			p.t.Fatal(err)
		}
		p.frames = wire.NewReader(bufio.NewReader(p.control), wire.Control)
	}
	_ = p.control.SetWriteDeadline(time.Now().Add(patience))
	if _, err := p.control.Write(b); err != nil {
		p.t.Logf("write: %v", err) // the source may have closed
	}
}

func (p *peer) say(m wire.Message) { p.t.Helper(); p.send(m.AppendFrame(nil)) }

// greet says hello and returns the answer.
func (p *peer) greet(h wire.Hello) wire.HelloAck {
	p.t.Helper()
	p.say(h)
	t, payload := p.frame()
	if t != wire.TypeHelloAck {
		p.t.Fatalf("%s instead of an ack", t)
	}
	ack, err := wire.DecodeHelloAck(payload)
	if err != nil {
		p.t.Fatal(err)
	}
	return ack
}

// follow says hello at a revision, must be accepted, and waits for entries.
func (p *peer) follow(at int64) wire.HelloAck {
	p.t.Helper()
	ack := p.greet(hello(at))
	if !ack.Accepted {
		p.t.Fatalf("refused: %s: %s", ack.ErrorCode, ack.ErrorDetail)
	}
	if ack.SnapshotLSN != wire.NoSnapshot {
		at = int64(ack.SnapshotLSN)
	}
	p.next, p.build = at+1, wire.NewAssembler(at+1)
	return ack
}

func (p *peer) frame() (wire.Type, []byte) {
	p.t.Helper()
	_ = p.control.SetReadDeadline(time.Now().Add(patience))
	t, payload, err := p.frames.Next()
	if err != nil {
		p.t.Fatalf("control: %v", err)
	}
	return t, payload
}

// await returns the payload of the next control frame of a type.
func (p *peer) await(want wire.Type) []byte {
	p.t.Helper()
	for {
		if t, payload := p.frame(); t == want {
			return payload
		}
	}
}

// goodbye waits for the source's goodbye, then for the connection's end with the
// same code.
func (p *peer) goodbye(want heliograph.Code) wire.Goodbye {
	p.t.Helper()
	g := p.farewell(want)
	p.closed(want)
	return g
}

// farewell waits for the source's goodbye.
func (p *peer) farewell(want heliograph.Code) wire.Goodbye {
	p.t.Helper()
	g, err := wire.DecodeGoodbye(p.await(wire.TypeGoodbye))
	if err != nil {
		p.t.Fatal(err)
	}
	if g.Code != want || g.Detail == "" {
		p.t.Fatalf("goodbye: got %s %q, want %s", g.Code, g.Detail, want)
	}
	return g
}

// closed waits until the source has closed the connection with a code.
func (p *peer) closed(want heliograph.Code) {
	p.t.Helper()
	select {
	case <-p.conn.Context().Done():
	case <-time.After(patience):
		p.t.Fatal("the connection stays open")
	}
	err := context.Cause(p.conn.Context())
	if app, ok := errors.AsType[*quic.ApplicationError](err); !ok || !app.Remote || heliograph.Code(app.ErrorCode) != want {
		p.t.Fatalf("closed with %v, want %s", err, want)
	}
}

// stream accepts the source's next bulk stream.
func (p *peer) stream() *wire.Reader {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	s, err := p.conn.AcceptUniStream(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	p.within = func(d time.Duration) { _ = s.SetReadDeadline(time.Now().Add(d)) }
	return wire.NewReader(bufio.NewReader(s), wire.Bulk)
}

// entries reads the next frame of entries.
func (p *peer) entries() wire.Entries {
	p.t.Helper()
	if p.bulk == nil {
		p.bulk = p.stream()
	}
	p.within(patience)
	t, payload, err := p.bulk.Next()
	if err != nil || t != wire.TypeEntries {
		p.t.Fatalf("entries: %s, %v", t, err)
	}
	e, err := wire.DecodeEntries(payload, &p.unpack)
	if err != nil {
		p.t.Fatal(err)
	}
	return e
}

// take reads entries until revision to is whole, checks each batch against the
// replica, and returns the number of frames.
func (p *peer) take(from *memory, to int64) (frames int) {
	p.t.Helper()
	for p.next <= to {
		frames++
		err := p.build.Add(p.entries(), func(b heliograph.Batch) error {
			if b.Rev != p.next {
				p.t.Fatalf("revision %d instead of %d", b.Rev, p.next)
			}
			want := from.batch(b.Rev)
			if !slices.EqualFunc(b.Records, want, sameRecord) {
				p.t.Fatalf("revision %d differs: %d records, want %d", b.Rev, len(b.Records), len(want))
			}
			p.next++
			return nil
		})
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return frames
}

func sameRecord(a, b heliograph.Record) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
}

func (p *peer) ack(rev int64) { p.t.Helper(); p.say(wire.Ack{AppliedLSN: rev, DurableLSN: rev}) }

// snapshot reads a whole snapshot, checks it, and returns its end.
func (p *peer) snapshot(ack wire.HelloAck) wire.SnapshotEnd {
	p.t.Helper()
	frames, sum, size := p.stream(), sha256.New(), int64(0)
	for {
		p.within(patience)
		t, payload, err := frames.Next()
		if err != nil {
			p.t.Fatal(err)
		}
		if t == wire.TypeSnapshotEnd {
			e, err := wire.DecodeSnapshotEnd(payload)
			if err != nil {
				p.t.Fatal(err)
			}
			if e.Size != size || !bytes.Equal(e.SHA256[:], sum.Sum(nil)) || e.Rev != int64(ack.SnapshotLSN) || uint64(size) != ack.SnapshotBytesTotal {
				p.t.Fatalf("%d bytes received, end %+v, ack %+v", size, e, ack)
			}
			if _, _, err := frames.Next(); err != io.EOF {
				p.t.Fatalf("behind the end: %v", err)
			}
			return e
		}
		c, err := wire.DecodeChunk(payload, &p.unpack)
		if err != nil || c.Offset != size {
			p.t.Fatalf("chunk at %d instead of %d: %v", c.Offset, size, err)
		}
		sum.Write(c.Data)
		size += int64(len(c.Data))
	}
}
