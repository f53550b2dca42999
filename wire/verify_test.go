package wire_test

import (
	"errors"
	"testing"

	"github.com/tinylib/msgp/msgp"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// hello returns a hello's payload with one more key.
func helloWith(key string, value []byte) []byte {
	frame := wire.Hello{SourceCluster: "a", SourceDatabaseID: "b", ProtocolVersion: 1}.AppendFrame(nil)
	payload := frame[wire.HeaderBytes:]
	payload[0]++ // a map of one pair more
	return append(msgp.AppendString(payload, key), value...)
}

func TestDigestsThatCannotBe(t *testing.T) {
	list := func(n uint32, values ...uint64) []byte {
		b := msgp.AppendArrayHeader(nil, n)
		for _, v := range values {
			b = msgp.AppendUint64(b, v)
		}
		return b
	}
	for name, value := range map[string][]byte{
		"half a pair":     list(1, 3),
		"too many":        list(2*heliograph.MaxProofBlocks + 2),
		"out of order":    list(4, 3, 1, 2, 1),
		"twice":           list(4, 3, 1, 3, 1),
		"beyond revision": list(2, 1<<54, 1),
		"negative":        list(2, 1<<63, 1),
	} {
		if h, err := wire.DecodeHello(helloWith("digests", value)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

// The largest hello fits its limit.
func TestTheLargestProofFits(t *testing.T) {
	h := wire.Hello{LastAppliedLSN: 1<<63 - 1}
	for i := range int64(100) {
		h.Digests = append(h.Digests, heliograph.BlockDigest{Block: 1<<52 + i, Sum: 1<<64 - 1})
		h.Tails = append(h.Tails, heliograph.TailDigest{From: 1<<62 + i, Sum: 1<<64 - 1})
		h.Features = append(h.Features, string(make([]byte, 100)))
	}
	for _, s := range []*string{&h.SourceCluster, &h.SourceDatabaseID, &h.NodeID, &h.Origin} {
		*s = string(make([]byte, 300))
	}
	payload := h.AppendFrame(nil)[wire.HeaderBytes:]
	got, err := wire.DecodeHello(payload)
	if err != nil || len(got.Digests) != heliograph.MaxProofBlocks || len(got.Tails) != heliograph.MaxProofTails {
		t.Errorf("%d bytes, %d digests, %v", len(payload), len(got.Digests), err)
	}
}

func TestHashesHave32Bits(t *testing.T) {
	b := msgp.AppendMapHeader(nil, 1)
	b = msgp.AppendUint64(msgp.AppendString(b, "hash"), 1<<32)
	if _, err := wire.DecodeVerifyReply(b); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("got %v", err)
	}
}
