package wire_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// However long the names: an ack with all the forks that it may tell of fits.
func TestForksFit(t *testing.T) {
	name := strings.Repeat("n", heliograph.MaxNameBytes)
	origin := heliograph.Origin{Cluster: heliograph.ClusterID(name), Database: heliograph.DatabaseID(name), EtcdID: 1<<64 - 1}
	fork := heliograph.Fork{Origin: origin.String(), Revision: 1 << 61, Bump: 1 << 61, Cluster: origin.Cluster, Database: origin.Database,
		EtcdID: 1<<64 - 1, Token: strings.Repeat("t", heliograph.MaxTokenBytes), At: time.UnixMilli(1 << 47).UTC()}
	if err := fork.Check(); err != nil {
		t.Fatal(err)
	}
	ack := wire.HelloAck{Accepted: true, SourceClusterID: name, SnapshotLSN: 1<<63 - 1, SnapshotBytesTotal: 1<<63 - 1, Origin: origin.String(), NodeID: name + "n",
		HeadLSN: 1 << 62, CompactLSN: 1 << 62, HeartbeatMS: 1 << 62}
	for range wire.MaxPath {
		ack.Path = append(ack.Path, name+"n")
	}
	for range 16 {
		ack.Features = append(ack.Features, strings.Repeat("f", 32))
	}
	for range wire.MaxAckForks {
		ack.Forks = append(ack.Forks, fork)
	}
	frame := ack.AppendFrame(nil)
	if len(frame) > wire.HeaderBytes+wire.MaxControlPayload {
		t.Fatalf("a frame of %d bytes", len(frame))
	}
	got, err := decode(frame)
	if err != nil || !reflect.DeepEqual(got, ack) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A fork that cannot be is refused before anybody relies on it.
func TestForksAreChecked(t *testing.T) {
	good := heliograph.Fork{Origin: "prod-us/default@1", Revision: 7, Cluster: "prod-eu", Database: "default", EtcdID: 2, Token: "t"}
	for name, spoil := range map[string]func(*heliograph.Fork){
		"origin":      func(f *heliograph.Fork) { f.Origin = "prod-us" },
		"other form":  func(f *heliograph.Fork) { f.Origin = "prod-us/default@01" },
		"revision":    func(f *heliograph.Fork) { f.Revision = 0 },
		"heir":        func(f *heliograph.Fork) { f.Cluster = "" },
		"bump":        func(f *heliograph.Fork) { f.Bump = 1<<63 - 1 },
		"no revision": func(f *heliograph.Fork) { f.Revision = -1 },
	} {
		f := good
		spoil(&f)
		frame := wire.HelloAck{Accepted: true, Forks: []heliograph.Fork{f}}.AppendFrame(nil)
		if got, err := decode(frame); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	payload := wire.HelloAck{Accepted: true, Forks: []heliograph.Fork{good}}.AppendFrame(nil)[wire.HeaderBytes:]
	at := bytes.Index(payload, []byte("forks")) + len("forks")
	// One more value in the fork, as a later version may send it.
	later := append(bytes.Clone(payload), 0xc3)
	later[at+1]++
	if got, err := wire.DecodeHelloAck(later); err != nil || len(got.Forks) != 1 || got.Forks[0].Token != "t" {
		t.Errorf("a later version's: got %+v, %v", got, err)
	}
	many := append(bytes.Clone(payload[:at]), 0x90|wire.MaxAckForks+1)
	if got, err := wire.DecodeHelloAck(append(many, payload[at+1:]...)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("too many: got %+v, %v", got, err)
	}
}
