package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"
	"go.uber.org/goleak"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// frames returns one frame of every kind, by name, with what it must decode to.
func frames(t testing.TB) []namedFrame {
	t.Helper()
	list := []namedFrame{
		{name: "hello", value: wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "db_01JTEST", LastAppliedLSN: 12345, ProtocolVersion: 1}},
		{name: "hello-further-keys", value: wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", LastAppliedLSN: 7, ProtocolVersion: 1,
			NodeID: "0123456789abcdef", Origin: "prod-us/default@cdf818194e3a8c32"}},
		{name: "hello-features", value: wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", LastAppliedLSN: 7, ProtocolVersion: 1,
			Features: []string{wire.FeatureLeases}}},
		{name: "hello-asks", value: wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", LastAppliedLSN: 7, ProtocolVersion: 1, Asks: true}},
		{name: "hello-digests", value: wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "default", LastAppliedLSN: 3500, ProtocolVersion: 1,
			Digests: []heliograph.BlockDigest{{Block: 0, Sum: 0xfedcba9876543210}, {Block: 2, Sum: 7}}, Tails: []heliograph.TailDigest{{From: 3072, Sum: 0x0123456789abcdef}, {From: 3500, Sum: 9}}}},
		{name: "hello-ack-features", value: wire.HelloAck{Accepted: true, SourceClusterID: "prod-us", SnapshotLSN: wire.NoSnapshot, Features: []string{wire.FeatureVerify}}},
		{name: "verify", value: wire.Verify{ID: 5}},
		{name: "verify-reply", value: wire.VerifyReply{ID: 5, LSN: 1000, CompactLSN: 900, EtcdHash: 0xc2f0a8e3, Hash: 0xc2f0a8e3, Endpoint: "http://10.0.0.1:2379"}},
		{name: "verify-reply-unknown", value: wire.VerifyReply{ID: 5, ErrorDetail: "etcd is unreachable"}},
		{name: "hello-ack", value: wire.HelloAck{Accepted: true, SourceClusterID: "prod-us", SnapshotLSN: 42, SnapshotBytesTotal: 1048576}},
		{name: "hello-ack-further-keys", value: wire.HelloAck{Accepted: true, SourceClusterID: "prod-us", SnapshotLSN: wire.NoSnapshot,
			HeadLSN: 99, CompactLSN: 40, Origin: "prod-us/default@cdf818194e3a8c32", NodeID: "fedcba9876543210", Path: []string{"fedcba9876543210"}, HeartbeatMS: 500}},
		{name: "hello-ack-forks", value: wire.HelloAck{Accepted: true, SourceClusterID: "prod-eu", SnapshotLSN: wire.NoSnapshot, Origin: "prod-ap/default@77", Forks: []heliograph.Fork{
			{Origin: "prod-us/default@cdf818194e3a8c32", Revision: 12345, Cluster: "prod-eu", Database: "default", EtcdID: 0x55, Token: "first", At: time.UnixMilli(1_800_000_000_000).UTC()},
			{Origin: "prod-eu/default@55", Revision: 20000, Bump: 1_000_000_000, Cluster: "prod-ap", Database: "default", Token: "second", At: time.UnixMilli(1_800_000_000_001).UTC()}}}},
		{name: "hello-ack-refused", value: wire.HelloAck{ErrorCode: heliograph.CodeUnknownDatabase, ErrorDetail: "no database \"x\" here", SourceClusterID: "prod-us", SnapshotLSN: wire.NoSnapshot}},
		{name: "heartbeat", value: wire.Heartbeat{HeadLSN: 100, CompactLSN: 50, StalenessMS: -1}},
		{name: "heartbeat-further-keys", value: wire.Heartbeat{HeadLSN: 100, CompactLSN: 50, UpstreamLSN: 101, StalenessMS: 12, Why: "etcd is not reachable", Path: []string{"a", "b"}}},
		{name: "heartbeat-unheard", value: wire.Heartbeat{HeadLSN: 100, CompactLSN: 50, StalenessMS: -1, UnheardMS: 4012}},
		{name: "heartbeat-auth", value: wire.Heartbeat{HeadLSN: 100, CompactLSN: 50, StalenessMS: -1, AuthKnown: true, AuthEnabled: true, AuthRevision: 12}},
		{name: "heartbeat-no-auth", value: wire.Heartbeat{HeadLSN: 100, CompactLSN: 50, StalenessMS: -1, AuthKnown: true}},
		{name: "leases", value: wire.Leases{Reset: true, More: true, Put: []heliograph.Lease{{ID: 0x694d5765fc71500b, TTL: 60}, {ID: 7, TTL: 3600}}}},
		{name: "leases-removed", value: wire.Leases{Put: []heliograph.Lease{{ID: -5, TTL: 9_000_000_000}}, Removed: []int64{0x694d5765fc71500b, 7}}},
		{name: "leases-none", value: wire.Leases{Reset: true}},
		{name: "ack", value: wire.Ack{AppliedLSN: 100, DurableLSN: 99}},
		{name: "read-index", value: wire.ReadIndex{ID: 3}},
		{name: "read-index-wait", value: wire.ReadIndex{ID: 3, WaitMS: 18000}},
		{name: "read-index-reply-unanswered", value: wire.ReadIndexReply{ID: 3, ErrorDetail: "no answer from etcd", Unanswered: true}},
		{name: "read-index-reply", value: wire.ReadIndexReply{ID: 3, LSN: 1000}},
		{name: "goodbye", value: wire.Goodbye{Code: heliograph.CodeShuttingDown, Detail: "bye"}},
		{name: "snapshot-end", value: wire.SnapshotEnd{Rev: 42, Size: 1048576, SHA256: [32]byte{1, 2, 3}}},
		{name: "snapshot-chunk", value: wire.Chunk{Offset: 4096, Data: []byte("sixteen bytes ok")}},
		{name: "snapshot-chunk-zstd", value: wire.Chunk{Offset: 0, Data: bytes.Repeat([]byte("again "), 500)}},
		{name: "entries", value: entries{{5, 0, "a"}, {5, 1, "b"}, {6, 0, "c"}}},
		{name: "entries-zstd", value: entries{{5, 0, strings.Repeat("again ", 500)}, {6, 0, "d"}}},
	}
	for i := range list {
		list[i].bytes = encode(t, list[i].value)
	}
	return list
}

type namedFrame struct {
	name  string
	value any
	bytes []byte
}

type entry struct {
	rev, sub int64
	value    string
}
type entries []entry

func encode(t testing.TB, value any) []byte {
	t.Helper()
	switch v := value.(type) {
	case wire.Message:
		return v.AppendFrame(nil)
	case wire.Chunk:
		return wire.AppendChunk(nil, v.Offset, v.Data, new(wire.Compressor))
	case entries:
		var e wire.EntriesEncoder
		for _, r := range v {
			if err := e.Add(heliograph.RevisionKey{Main: r.rev, Sub: r.sub}.Append(nil), []byte(r.value)); err != nil {
				t.Fatal(err)
			}
		}
		return e.AppendFrame(nil, 9, false, new(wire.Compressor))
	}
	t.Fatalf("cannot encode %T", value)
	return nil
}

// decode reads one frame of either class.
func decode(frame []byte) (any, error) {
	for _, class := range []wire.Class{wire.Control, wire.Bulk} {
		typ, payload, err := wire.NewReader(bytes.NewReader(frame), class).Next()
		if errors.Is(err, wire.ErrUnexpected) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return decodePayload(typ, payload)
	}
	return nil, wire.ErrUnexpected
}

func decodePayload(typ wire.Type, payload []byte) (any, error) {
	switch typ {
	case wire.TypeHello:
		return wire.DecodeHello(payload)
	case wire.TypeHelloAck:
		return wire.DecodeHelloAck(payload)
	case wire.TypeHeartbeat:
		return wire.DecodeHeartbeat(payload)
	case wire.TypeAck:
		return wire.DecodeAck(payload)
	case wire.TypeReadIndex:
		return wire.DecodeReadIndex(payload)
	case wire.TypeReadIndexReply:
		return wire.DecodeReadIndexReply(payload)
	case wire.TypeGoodbye:
		return wire.DecodeGoodbye(payload)
	case wire.TypeVerify:
		return wire.DecodeVerify(payload)
	case wire.TypeVerifyReply:
		return wire.DecodeVerifyReply(payload)
	case wire.TypeLeases:
		return wire.DecodeLeases(payload)
	case wire.TypeSnapshotEnd:
		return wire.DecodeSnapshotEnd(payload)
	case wire.TypeChunk:
		return wire.DecodeChunk(payload, new(wire.Decompressor))
	case wire.TypeEntries:
		e, err := wire.DecodeEntries(payload, new(wire.Decompressor))
		if err != nil {
			return nil, err
		}
		var list entries
		for r := range e.All {
			k, err := heliograph.ParseRevisionKey(r.Key)
			if err != nil {
				return nil, err
			}
			list = append(list, entry{k.Main, k.Sub, string(r.Value)})
		}
		return list, nil
	}
	return nil, fmt.Errorf("no decoder for %s", typ)
}

func TestRoundTrip(t *testing.T) {
	for _, f := range frames(t) {
		got, err := decode(f.bytes)
		if err != nil || !reflect.DeepEqual(got, f.value) {
			t.Errorf("%s: got %+v, %v, want %+v", f.name, got, err, f.value)
		}
	}
}

// The zstd frames are left out: their bytes belong to the compressor's version.
func TestGolden(t *testing.T) {
	for _, f := range frames(t) {
		if strings.HasSuffix(f.name, "-zstd") {
			continue
		}
		path := filepath.Join("testdata", f.name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(f.bytes)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(f.bytes); got != strings.TrimSpace(string(want)) {
			t.Errorf("%s:\n got %s\nwant %s", f.name, got, want)
		}
	}
}

// The bytes with which the protocol began. They are written here too, so that
// -update cannot change them.
func TestFirstBytes(t *testing.T) {
	hello := wire.Hello{SourceCluster: "prod-us", SourceDatabaseID: "db_01JTEST", LastAppliedLSN: 12345, ProtocolVersion: 1}
	const wantHello = "010000005c84ae736f757263655f636c7573746572a770726f642d7573b2736f757263655f64617461626173655f6964aa64625f30314a54455354b06c6173745f6170706c6965645f6c736ecd3039b070726f746f636f6c5f76657273696f6e01"
	if got := hex.EncodeToString(hello.AppendFrame(nil)); got != wantHello {
		t.Errorf("hello:\n got %s\nwant %s", got, wantHello)
	}
	ack := wire.HelloAck{Accepted: true, SourceClusterID: "prod-us", SnapshotLSN: 42, SnapshotBytesTotal: 1048576}
	const wantAck = "020000006786a86163636570746564c3aa6572726f725f636f646500ac6572726f725f64657461696ca0b1736f757263655f636c75737465725f6964a770726f642d7573ac736e617073686f745f6c736e2ab4736e617073686f745f62797465735f746f74616cce00100000"
	if got := hex.EncodeToString(ack.AppendFrame(nil)); got != wantAck {
		t.Errorf("ack:\n got %s\nwant %s", got, wantAck)
	}
}

func TestEveryPrefixOfEveryFrame(t *testing.T) {
	for _, f := range frames(t) {
		for n := range len(f.bytes) {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, err := decode(f.bytes[:n]); !errors.Is(err, want) {
				t.Fatalf("%s: prefix of %d bytes: got %v, want %v", f.name, n, err, want)
			}
		}
	}
}

// A payload may be cut although the frame is whole: the length said so.
func TestEveryPrefixOfEveryPayload(t *testing.T) {
	for _, f := range frames(t) {
		payload := f.bytes[wire.HeaderBytes:]
		zstd := strings.HasSuffix(f.name, "-zstd")
		for n := range payload {
			_, err := decodePayload(wire.Type(f.bytes[0]), payload[:n:n])
			// Compressed data has no length of its own: there the checksum tells.
			if !errors.Is(err, io.ErrUnexpectedEOF) && !(zstd && errors.Is(err, wire.ErrChecksum)) {
				t.Fatalf("%s: prefix of %d bytes: got %v, want io.ErrUnexpectedEOF", f.name, n, err)
			}
		}
	}
}

func TestEveryFlippedBitOfBulk(t *testing.T) {
	for _, f := range frames(t) {
		typ := wire.Type(f.bytes[0])
		if typ != wire.TypeChunk && typ != wire.TypeEntries {
			continue
		}
		for i := wire.HeaderBytes; i < len(f.bytes); i++ {
			for bit := range 8 {
				bad := bytes.Clone(f.bytes)
				bad[i] ^= 1 << bit
				if _, err := decode(bad); err == nil {
					t.Fatalf("%s: bit %d of byte %d flipped: accepted", f.name, bit, i)
				}
			}
		}
	}
}

func TestReaderChecksTheLengthFirst(t *testing.T) {
	tests := []struct {
		class wire.Class
		head  string
		want  error
	}{
		{wire.Control, "01 00001001", wire.ErrTooLarge},
		{wire.Control, "01 ffffffff", wire.ErrTooLarge},
		{wire.Control, "10 00001001", wire.ErrTooLarge},
		{wire.Control, "80 00001001", wire.ErrTooLarge},
		{wire.Control, "22 00000001", wire.ErrUnexpected},
		{wire.Control, "77 00000000", wire.ErrUnexpected},
		{wire.Bulk, "01 00000001", wire.ErrUnexpected},
		{wire.Bulk, "20 00100012", wire.ErrTooLarge},
		{wire.Bulk, "21 00000031", wire.ErrTooLarge},
		{wire.Bulk, "22 ffffffff", wire.ErrTooLarge},
	}
	for _, tt := range tests {
		head, err := hex.DecodeString(strings.ReplaceAll(tt.head, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		// An endless reader: were the length believed, it would be read.
		r := io.MultiReader(bytes.NewReader(head), neverRead{t})
		typ, _, err := wire.NewReader(r, tt.class).Next()
		if !errors.Is(err, tt.want) || typ != wire.Type(head[0]) {
			t.Errorf("%s: got %s, %v, want %v", tt.head, typ, err, tt.want)
		}
	}
}

type neverRead struct{ t *testing.T }

func (r neverRead) Read([]byte) (int, error) {
	r.t.Error("the payload was read")
	return 0, io.EOF
}

func TestVoterClass(t *testing.T) {
	for typ := range 256 {
		want := typ >= 0x80 && typ <= 0x8f
		if got := wire.Type(typ).Voter(); got != want {
			t.Errorf("%#x: got %v", typ, got)
		}
	}
	typ, _, err := wire.NewReader(bytes.NewReader([]byte{0x83, 0, 0, 0, 0}), wire.Control).Next()
	if err != nil || wire.CodeOf(typ, err) != heliograph.CodeObserverOnly {
		t.Errorf("got %s, %v, %s", typ, err, wire.CodeOf(typ, err))
	}
}

func TestUnknownKeysAreIgnored(t *testing.T) {
	b := msgp.AppendMapHeader(nil, 7)
	b = msgp.AppendMapStrStr(msgp.AppendString(b, "x-map"), map[string]string{"a": "b"})
	b = msgp.AppendString(msgp.AppendString(b, "source_cluster"), "c")
	b = msgp.AppendBytes(msgp.AppendString(b, "x-bytes"), []byte{1, 2})
	b = msgp.AppendUint64(msgp.AppendString(b, "last_applied_lsn"), 1)
	b = msgp.AppendString(msgp.AppendString(b, "source_database_id"), "d")
	b = msgp.AppendNil(msgp.AppendString(b, "x-nil"))
	b = msgp.AppendUint64(msgp.AppendString(b, "protocol_version"), 9)
	got, err := wire.DecodeHello(b)
	want := wire.Hello{SourceCluster: "c", SourceDatabaseID: "d", LastAppliedLSN: 1, ProtocolVersion: 9}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestMalformedControl(t *testing.T) {
	pair := func(n uint32, key string, value any) []byte {
		b, err := msgp.AppendIntf(msgp.AppendString(msgp.AppendMapHeader(nil, n), key), value)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tests := map[string][]byte{
		"not a map":         msgp.AppendString(nil, "hello"),
		"key not a string":  msgp.AppendInt(msgp.AppendInt(msgp.AppendMapHeader(nil, 1), 1), 1),
		"wrong type":        pair(1, "id", "three"),
		"negative":          pair(1, "id", -3),
		"bytes behind":      append(pair(1, "id", uint64(3)), 0xc0),
		"missing key":       pair(1, "other", uint64(3)),
		"key twice":         append(pair(2, "id", uint64(3)), pair(1, "id", uint64(3))[1:]...),
		"deep nesting":      append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "x"), bytes.Repeat([]byte{0x91}, 4000)...),
		"many pairs said":   append(msgp.AppendMapHeader(nil, 1<<31), 0xa1, 'x'),
		"long array said":   append(msgp.AppendString(msgp.AppendMapHeader(nil, 1), "x"), 0xdd, 0x7f, 0xff, 0xff, 0xff),
		"more than a frame": make([]byte, wire.MaxControlPayload+1),
	}
	for name, payload := range tests {
		if got, err := wire.DecodeReadIndex(payload); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestPathIsCutToFit(t *testing.T) {
	h, err := wire.DecodeHeartbeat(wire.Heartbeat{Path: make([]string, wire.MaxPath+1)}.AppendFrame(nil)[wire.HeaderBytes:])
	if err != nil || len(h.Path) != wire.MaxPath {
		t.Errorf("got %d node ids, %v", len(h.Path), err)
	}
}

func TestSentencesAreCutToFit(t *testing.T) {
	long := strings.Repeat("ä", 5000)
	frame := wire.HelloAck{ErrorCode: heliograph.CodeDiverged, ErrorDetail: long, SourceClusterID: long, Origin: long, NodeID: long,
		Path: strings.Split(strings.Repeat(long+" ", 40), " "), HeadLSN: 1 << 62, CompactLSN: 1 << 62, HeartbeatMS: 1 << 62}.AppendFrame(nil)
	if len(frame) > wire.HeaderBytes+wire.MaxControlPayload {
		t.Fatalf("a frame of %d bytes", len(frame))
	}
	got, err := decode(frame)
	if err != nil {
		t.Fatal(err)
	}
	detail := got.(wire.HelloAck).ErrorDetail
	said, shortened := strings.CutSuffix(detail, "…")
	if !shortened || !strings.HasPrefix(long, said) || len(detail) < wire.MaxDetailBytes-1 || len(detail) > wire.MaxDetailBytes || len(said)%2 != 0 {
		t.Errorf("detail of %d bytes, ending with %q", len(detail), detail[len(detail)-6:])
	}
}

func TestCompressorBacksOff(t *testing.T) {
	noise := make([]byte, 4096)
	state := uint32(1)
	for i := range noise {
		state = state*1664525 + 1013904223
		noise[i] = byte(state >> 24)
	}
	text := bytes.Repeat([]byte("compress me "), 400)
	var c wire.Compressor
	size := func(data []byte) int { return len(wire.AppendChunk(nil, 0, data, &c)) }
	if size(text) >= len(text)/2 {
		t.Error("text was not compressed")
	}
	if size(noise) < len(noise) {
		t.Error("noise shrank")
	}
	if size(text) < len(text) {
		t.Error("the frame behind an incompressible one was not skipped")
	}
	if size(text) >= len(text)/2 {
		t.Error("compression was not tried again")
	}
}

// A zip bomb: the header says little, the zstd frame holds much.
func TestDecompressionIsBounded(t *testing.T) {
	frame := wire.AppendChunk(nil, 0, bytes.Repeat([]byte{0}, wire.MaxChunkBytes), new(wire.Compressor))
	payload := frame[wire.HeaderBytes:]
	payload[8], payload[9], payload[10], payload[11] = 0, 0, 0, 100
	wire.PutChecksum(payload, 12)
	if _, err := wire.DecodeChunk(payload, new(wire.Decompressor)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed", err)
	}
}
