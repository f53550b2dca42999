package wire_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// seed adds the payloads of the named frame type to the corpus.
func seed(f *testing.F, typ wire.Type) {
	for _, frame := range frames(f) {
		if wire.Type(frame.bytes[0]) == typ {
			f.Add(frame.bytes[wire.HeaderBytes:])
		}
	}
}

// fuzzMessage checks that what decodes encodes to a frame that decodes to the
// same, within the limit of its type.
func fuzzMessage[M wire.Message](f *testing.F, typ wire.Type, decode func([]byte) (M, error)) {
	seed(f, typ)
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := decode(payload)
		if err != nil {
			return
		}
		got, next, err := wire.NewReader(bytes.NewReader(m.AppendFrame(nil)), classOf(typ)).Next()
		if err != nil || got != typ {
			t.Fatalf("%+v: its frame reads as %s, %v", m, got, err)
		}
		again, err := decode(next)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("got %+v, %v, want %+v", again, err, m)
		}
	})
}

func classOf(typ wire.Type) wire.Class {
	if typ == wire.TypeSnapshotEnd {
		return wire.Bulk
	}
	return wire.Control
}

func FuzzHello(f *testing.F)     { fuzzMessage(f, wire.TypeHello, wire.DecodeHello) }
func FuzzHelloAck(f *testing.F)  { fuzzMessage(f, wire.TypeHelloAck, wire.DecodeHelloAck) }
func FuzzHeartbeat(f *testing.F) { fuzzMessage(f, wire.TypeHeartbeat, wire.DecodeHeartbeat) }
func FuzzAck(f *testing.F)       { fuzzMessage(f, wire.TypeAck, wire.DecodeAck) }
func FuzzReadIndex(f *testing.F) { fuzzMessage(f, wire.TypeReadIndex, wire.DecodeReadIndex) }
func FuzzReadIndexReply(f *testing.F) {
	fuzzMessage(f, wire.TypeReadIndexReply, wire.DecodeReadIndexReply)
}
func FuzzLeases(f *testing.F)      { fuzzMessage(f, wire.TypeLeases, wire.DecodeLeases) }
func FuzzVerify(f *testing.F)      { fuzzMessage(f, wire.TypeVerify, wire.DecodeVerify) }
func FuzzVerifyReply(f *testing.F) { fuzzMessage(f, wire.TypeVerifyReply, wire.DecodeVerifyReply) }
func FuzzGoodbye(f *testing.F)     { fuzzMessage(f, wire.TypeGoodbye, wire.DecodeGoodbye) }
func FuzzSnapshotEnd(f *testing.F) { fuzzMessage(f, wire.TypeSnapshotEnd, wire.DecodeSnapshotEnd) }

// The bulk fuzzers repair the checksum, or almost nothing would get past it.
func FuzzChunk(f *testing.F) {
	seed(f, wire.TypeChunk)
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) >= 17 {
			wire.PutChecksum(payload, 12)
		}
		c, err := wire.DecodeChunk(payload, new(wire.Decompressor))
		if err != nil {
			return
		}
		if len(c.Data) == 0 || len(c.Data) > wire.MaxChunkBytes {
			t.Fatalf("%d bytes", len(c.Data))
		}
	})
}

func FuzzEntries(f *testing.F) {
	seed(f, wire.TypeEntries)
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) >= 37 {
			wire.PutChecksum(payload, 32)
		}
		e, err := wire.DecodeEntries(payload, new(wire.Decompressor))
		if err != nil {
			return
		}
		var enc wire.EntriesEncoder
		var first heliograph.RevisionKey
		n := 0
		for r := range e.All {
			k, err := heliograph.ParseRevisionKey(r.Key)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				first = k
			}
			if err := enc.Add(r.Key, r.Value); err != nil && !errors.Is(err, wire.ErrTooLarge) {
				t.Fatal(err)
			}
			n++
		}
		if n != e.Count || first.Main != e.First {
			t.Fatalf("%d records from %d instead of %d from %d", n, first.Main, e.Count, e.First)
		}
		a := wire.NewAssembler(e.First)
		err = a.Add(e, func(b heliograph.Batch) error {
			if b.Rev < e.First || b.Rev > e.Last || len(b.Records) == 0 {
				t.Fatalf("batch %d of %d records", b.Rev, len(b.Records))
			}
			return nil
		})
		if err != nil && first.Sub == 0 {
			t.Fatalf("checked entries do not assemble: %v", err)
		}
	})
}

func FuzzReader(f *testing.F) {
	for _, frame := range frames(f) {
		f.Add(frame.bytes)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		for _, class := range []wire.Class{wire.Control, wire.Bulk} {
			r := wire.NewReader(bytes.NewReader(stream), class)
			for {
				typ, payload, err := r.Next()
				if err != nil {
					known := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
						errors.Is(err, wire.ErrTooLarge) || errors.Is(err, wire.ErrUnexpected)
					if !known {
						t.Fatalf("%s: %v", typ, err)
					}
					break
				}
				if !typ.Voter() {
					_, _ = decodePayload(typ, payload)
				}
			}
		}
	})
}
