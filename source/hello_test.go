package source_test

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source"
	"github.com/heliograph/heliograph/wire"
)

func TestAccepted(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(12), nil)
	p := w.connect("m1")
	ack := p.follow(7)
	if ack.SourceClusterID != "prod-us" || ack.HeadLSN != 12 || ack.Origin != origin.String() || ack.NodeID != "node-a" ||
		strings.Join(ack.Path, " ") != "top node-a" || ack.HeartbeatMS != 500 || ack.SnapshotBytesTotal != 0 {
		t.Errorf("ack %+v", ack)
	}
	p.take(w.replica, 12)
	p.ack(12)
	eventually(t, "the ack in the status", func() bool {
		d := w.server.Downstreams()
		return len(d) == 1 && d[0].Name == "m1" && d[0].Cluster == "prod-eu" && d[0].State == "live" &&
			d[0].SentRevision == 12 && d[0].AppliedRevision == 12 && d[0].DurableRevision == 12 && d[0].InFlightBytes == 0
	})
	if got := w.metric("mirrors"); got != 1 {
		t.Errorf("%v mirrors", got)
	}
	p.say(wire.Goodbye{Code: heliograph.CodeOK, Detail: "done"})
	p.closed(heliograph.CodeOK)
	eventually(t, "the mirror is gone", func() bool { return len(w.server.Downstreams()) == 0 && w.metric("mirrors") == 0 })
	if got := w.metric("endings_total", "code", "ok"); got != 1 {
		t.Errorf("%v endings", got)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	mirror := func(name string) []string { return []string{uri(heliograph.RoleMirror, name)} }
	tests := []struct {
		name   string
		config func(*source.Config)
		uris   []string
		hello  func(*wire.Hello)
		want   heliograph.Code
	}{
		{name: "wrong cluster id", hello: func(h *wire.Hello) { h.SourceCluster = "prod-eu" }, want: heliograph.CodeClusterMismatch},
		{name: "wrong version", hello: func(h *wire.Hello) { h.ProtocolVersion = 2 }, want: heliograph.CodeBadVersion},
		{name: "unknown database", hello: func(h *wire.Hello) { h.SourceDatabaseID = "other" }, want: heliograph.CodeUnknownDatabase},
		{name: "role source", uris: []string{uri(heliograph.RoleSource, "m1")}, want: heliograph.CodeObserverOnly},
		{name: "role operator", uris: []string{uri(heliograph.RoleOperator, "m1")}, want: heliograph.CodeObserverOnly},
		{name: "no identity", uris: []string{}, want: heliograph.CodeNotAuthorized},
		{name: "two identities", uris: append(mirror("m1"), mirror("m2")...), want: heliograph.CodeNotAuthorized},
		{name: "name not allowed", config: func(c *source.Config) { c.Allow = []string{"m2"} }, want: heliograph.CodeNotAuthorized},
		{name: "self", hello: func(h *wire.Hello) { h.NodeID = "node-a" }, want: heliograph.CodeSelfMirror},
		{name: "cycle", hello: func(h *wire.Hello) { h.NodeID = "top" }, want: heliograph.CodeCycle},
		{name: "other origin", hello: func(h *wire.Hello) { h.Origin = "prod-us/default@1" }, want: heliograph.CodeDiverged},
		{name: "ahead of the origin", hello: func(h *wire.Hello) { h.LastAppliedLSN = 99 }, want: heliograph.CodeDiverged},
		{
			name: "ahead of a source that cannot ask etcd",
			config: func(c *source.Config) {
				c.ReadIndex = func(context.Context) (int64, error) { return 0, errors.New("etcd is away") }
			},
			hello: func(h *wire.Hello) { h.LastAppliedLSN = 99 },
			want:  heliograph.CodeNotReady,
		},
		{
			// A source node that was killed is behind, and what it has heard of
			// etcd may be older than what the mirror has. Calling that diverged
			// would stop a good mirror for good.
			name: "ahead of a source whose etcd has it",
			config: func(c *source.Config) {
				c.ReadIndex = func(context.Context) (int64, error) { return 99, nil }
			},
			hello: func(h *wire.Hello) { h.LastAppliedLSN = 99 },
			want:  heliograph.CodeNotReady,
		},
		{name: "no data", config: func(c *source.Config) { c.Replica = newMemory(0) }, want: heliograph.CodeNotReady},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, newMemory(10), tt.config)
			if tt.uris == nil {
				tt.uris = mirror("m1")
			}
			p, err := w.dial(w.ca.issue(time.Hour, tt.uris...))
			if err != nil {
				t.Fatal(err)
			}
			h := hello(5)
			if tt.hello != nil {
				tt.hello(&h)
			}
			ack := p.greet(h)
			if ack.Accepted || ack.ErrorCode != tt.want || ack.ErrorDetail == "" {
				t.Errorf("got %s %q, want %s", ack.ErrorCode, ack.ErrorDetail, tt.want)
			}
			p.closed(tt.want)
			stranger := tt.want == heliograph.CodeObserverOnly || tt.want == heliograph.CodeNotAuthorized
			if told := ack.SourceClusterID != ""; told == stranger {
				t.Errorf("ack names the cluster: %v", told)
			}
			if stranger && (ack.HeadLSN != 0 || ack.Origin != "" || ack.NodeID != "" || ack.Path != nil) {
				t.Errorf("a stranger learns %+v", ack)
			}
			if got := w.metric("refusals_total", "code", tt.want.String()); got != 1 {
				t.Errorf("%v refusals counted", got)
			}
			if d := w.server.Downstreams(); len(d) != 0 {
				t.Errorf("downstreams %+v", d)
			}
		})
	}
}

// TestNoCertificate: without a certificate of the right authority nothing can be
// said at all.
func TestNoCertificate(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), nil)
	foreign := newAuthority(t)
	for name, dial := range map[string]func() (*peer, error){
		"none":    func() (*peer, error) { return w.dial() },
		"foreign": func() (*peer, error) { return w.dial(foreign.issue(time.Hour, uri(heliograph.RoleMirror, "m1"))) },
		"expired": func() (*peer, error) { return w.dial(w.ca.issue(-time.Minute, uri(heliograph.RoleMirror, "m1"))) },
	} {
		t.Run(name, func(t *testing.T) {
			before := w.metric("failed_handshakes_total")
			// In TLS 1.3 the client is done before the server has seen its
			// certificate, so the refusal may come with the connection.
			p, err := dial()
			if err == nil {
				select {
				case <-p.conn.Context().Done():
					err = context.Cause(p.conn.Context())
				case <-time.After(patience):
					t.Fatal("connected")
				}
			}
			if tr, ok := errors.AsType[*quic.TransportError](err); !ok || !tr.ErrorCode.IsCryptoError() {
				t.Errorf("got %v, want a TLS alert", err)
			}
			eventually(t, "the failure is counted", func() bool { return w.metric("failed_handshakes_total") == before+1 })
		})
	}
}

// raw is a frame with any type and claimed length.
func raw(t byte, length uint32, payload string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{t}, length), payload...)
}

var badFrames = []struct {
	name  string
	frame []byte
	want  heliograph.Code
}{
	{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), heliograph.CodeProtocol},
	{"oversize length", raw(byte(wire.TypeHello), 1<<31, "x"), heliograph.CodeProtocol},
	{"one byte too long", raw(byte(wire.TypeHeartbeat), wire.MaxControlPayload+1, ""), heliograph.CodeProtocol},
	{"unknown type", raw(0x7f, 0, ""), heliograph.CodeProtocol},
	{"bulk frame", raw(byte(wire.TypeEntries), 1, "x"), heliograph.CodeProtocol},
	{"source's frame", wire.ReadIndexReply{ID: 1}.AppendFrame(nil), heliograph.CodeProtocol},
	{"malformed hello", raw(byte(wire.TypeHello), 4, "\xff\xff\xff\xff"), heliograph.CodeProtocol},
	{"empty hello", raw(byte(wire.TypeHello), 0, ""), heliograph.CodeProtocol},
	{"vote", raw(0x80, 3, "abc"), heliograph.CodeObserverOnly},
	{"proposal", raw(0x8f, 0, ""), heliograph.CodeObserverOnly},
	{"oversize vote", raw(0x81, 1<<30, ""), heliograph.CodeObserverOnly},
}

func TestBadFirstFrame(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), nil)
	for _, tt := range badFrames {
		t.Run(tt.name, func(t *testing.T) {
			p := w.connect("m1")
			p.send(tt.frame)
			p.closed(tt.want)
		})
	}
	t.Run("end within the hello", func(t *testing.T) {
		p := w.connect("m1")
		b := hello(5).AppendFrame(nil)
		p.send(b[:len(b)-3])
		p.control.Close()
		p.closed(heliograph.CodeProtocol)
	})
	// One bad peer hurts nobody else.
	p := w.connect("m1")
	p.follow(5)
	p.take(w.replica, 10)
}

func TestBadLaterFrame(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), nil)
	bystander := w.connect("bystander")
	bystander.follow(5)
	ack := func(applied, durable int64) []byte {
		return wire.Ack{AppliedLSN: applied, DurableLSN: durable}.AppendFrame(nil)
	}
	cases := append(badFrames[:len(badFrames):len(badFrames)], []struct {
		name  string
		frame []byte
		want  heliograph.Code
	}{
		{"second hello", hello(5).AppendFrame(nil), heliograph.CodeProtocol},
		{"ack of what was not sent", ack(11, 5), heliograph.CodeProtocol},
		{"durable above applied", ack(6, 7), heliograph.CodeProtocol},
		{"ack that falls", append(ack(9, 9), ack(8, 8)...), heliograph.CodeProtocol},
		{"ack below the hello", ack(4, 4), heliograph.CodeProtocol},
	}...)
	t.Run("frames", func(t *testing.T) { // waits for all of them
		for _, tt := range cases {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				p := w.connect("m1")
				p.t = t
				p.follow(5)
				p.take(w.replica, 10)
				p.send(tt.frame)
				p.goodbye(tt.want)
			})
		}
	})
	w.replica.put(1, 10)
	bystander.take(w.replica, 11)
}

func TestNoHello(t *testing.T) {
	t.Parallel()
	const limit = 300 * time.Millisecond
	w := start(t, newMemory(10), func(c *source.Config) { c.HelloTimeout = limit })
	began := time.Now()
	t.Run("no stream", func(t *testing.T) {
		w.connect("m1").closed(heliograph.CodeTimeout)
	})
	t.Run("half a hello", func(t *testing.T) {
		p := w.connect("m1")
		p.send(hello(5).AppendFrame(nil)[:20])
		p.closed(heliograph.CodeTimeout)
	})
	t.Run("slow loris", func(t *testing.T) {
		p := w.connect("m1")
		tick := time.NewTicker(limit / 20)
		defer tick.Stop()
		for _, b := range hello(5).AppendFrame(nil) {
			p.send([]byte{b})
			select {
			case <-tick.C:
				continue
			case <-p.conn.Context().Done():
			}
			break
		}
		p.closed(heliograph.CodeTimeout)
	})
	if got := time.Since(began); got < 3*limit {
		t.Errorf("closed after %v", got)
	}
	if got := w.metric("hello_timeouts_total"); got != 3 {
		t.Errorf("%v hello time-outs counted", got)
	}
	if got := w.metric("refusals_total", "code", "timeout"); got != 3 {
		t.Errorf("%v refusals counted", got)
	}
}

// TestOneStream: a peer gets one bidirectional stream and no other, ever.
func TestOneStream(t *testing.T) {
	t.Parallel()
	w := start(t, newMemory(10), nil)
	p := w.connect("m1")
	p.follow(5)
	if _, err := p.conn.OpenStream(); err == nil {
		t.Error("a second stream was allowed")
	}
	if _, err := p.conn.OpenUniStream(); err == nil {
		t.Error("a unidirectional stream was allowed")
	}
}
