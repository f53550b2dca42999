package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

func key(rev, sub int64) []byte { return heliograph.RevisionKey{Main: rev, Sub: sub}.Append(nil) }

// frame encodes records and decodes them again, as a mirror would see them.
func frame(t *testing.T, continued bool, list ...entry) wire.Entries {
	t.Helper()
	var enc wire.EntriesEncoder
	for _, r := range list {
		if err := enc.Add(key(r.rev, r.sub), []byte(r.value)); err != nil {
			t.Fatal(err)
		}
	}
	e, err := wire.DecodeEntries(enc.AppendFrame(nil, 0, continued, nil)[wire.HeaderBytes:], nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// assemble returns what comes out, as "rev:values" per batch.
func assemble(a *wire.Assembler, frames ...wire.Entries) (got []string, err error) {
	for _, f := range frames {
		err = a.Add(f, func(b heliograph.Batch) error {
			s := fmt.Sprint(b.Rev, ":")
			for _, r := range b.Records {
				s += string(r.Value)
			}
			got = append(got, s)
			return nil
		})
		if err != nil {
			return got, err
		}
	}
	return got, nil
}

func TestAssemblerKeepsRevisionsWhole(t *testing.T) {
	a := wire.NewAssembler(5)
	got, err := assemble(a,
		frame(t, false, entry{5, 0, "a"}, entry{5, 1, "b"}, entry{6, 0, "c"}),
		frame(t, true, entry{7, 0, "d"}, entry{8, 0, "e"}),
		frame(t, true, entry{8, 1, "f"}),
		frame(t, false, entry{8, 2, "g"}, entry{9, 0, "h"}),
	)
	want := []string{"5:ab", "6:c", "7:d", "8:efg", "9:h"}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if a.Pending() != 0 {
		t.Errorf("%d bytes are still held", a.Pending())
	}
}

func TestAssemblerRefusesWhatDoesNotFollow(t *testing.T) {
	tests := map[string][]wire.Entries{
		"gap":                      {frame(t, false, entry{6, 0, "a"})},
		"repeated":                 {frame(t, false, entry{5, 0, "a"}), frame(t, false, entry{5, 0, "a"})},
		"begins in the middle":     {frame(t, false, entry{5, 1, "a"})},
		"continued, sub missing":   {frame(t, true, entry{5, 0, "a"}), frame(t, false, entry{5, 2, "a"})},
		"continued, then next rev": {frame(t, true, entry{5, 0, "a"}), frame(t, false, entry{6, 0, "a"})},
	}
	for name, frames := range tests {
		if got, err := assemble(wire.NewAssembler(5), frames...); !errors.Is(err, wire.ErrOrder) {
			t.Errorf("%s: got %v, %v, want ErrOrder", name, got, err)
		}
	}
}

func TestDecodeEntriesChecksEveryRecord(t *testing.T) {
	good := encode(t, entries{{5, 0, "a"}, {5, 1, "b"}, {6, 0, "c"}})[wire.HeaderBytes:]
	put := func(at int, v uint64, n int) func([]byte) {
		return func(b []byte) {
			if n == 8 {
				binary.BigEndian.PutUint64(b[at:], v)
			} else {
				binary.BigEndian.PutUint32(b[at:], uint32(v))
			}
		}
	}
	const records = 37
	tests := map[string]func([]byte){
		"first revision":    put(0, 4, 8),
		"last revision":     put(8, 7, 8),
		"last below first":  put(8, 4, 8),
		"zero first":        put(0, 0, 8),
		"negative head":     put(16, 1<<63, 8),
		"count":             put(28, 2, 4),
		"no records":        put(28, 0, 4),
		"raw length":        put(24, 3, 4),
		"huge raw length":   put(24, 1<<31, 4),
		"unknown flag":      func(b []byte) { b[36] = 0x40 },
		"key length":        func(b []byte) { b[records] = 16 },
		"key mark":          func(b []byte) { b[records+1+8] = 'x' },
		"sub revision":      func(b []byte) { b[records+1+16] = 7 },
		"value length":      put(records+18, 1<<30, 4),
		"revision too high": func(b []byte) { b[len(b)-6-17+8-1+0] = 9 },
	}
	for name, change := range tests {
		bad := bytes.Clone(good)
		change(bad)
		if bytes.Equal(bad, good) {
			t.Fatalf("%s changes nothing", name)
		}
		wire.PutChecksum(bad, 32)
		if e, err := wire.DecodeEntries(bad, new(wire.Decompressor)); err == nil {
			t.Errorf("%s: accepted as %+v", name, e)
		}
	}
}

func TestEncoderLimits(t *testing.T) {
	var e wire.EntriesEncoder
	if err := e.Add(key(1, 0), make([]byte, wire.MaxRecordBytes)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("oversize record: got %v", err)
	}
	if err := e.Add([]byte("short"), nil); err == nil {
		t.Error("a malformed key was accepted")
	}
	if e.RawBytes() != 0 {
		t.Errorf("a refused record left %d bytes", e.RawBytes())
	}
	largest := wire.MaxRecordBytes - heliograph.PutKeyBytes
	if err := e.Add(key(1, 0), make([]byte, largest)); err != nil {
		t.Fatal(err)
	}
	if e.Fits(wire.MaxRecordBytes) {
		t.Error("a second one of the largest records fits")
	}
	if err := e.Add(key(2, 0), make([]byte, largest)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("overfull frame: got %v", err)
	}
	b := e.AppendFrame(nil, 1, false, nil)
	typ, payload, err := wire.NewReader(bytes.NewReader(b), wire.Bulk).Next()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := wire.DecodeEntries(payload, nil); typ != wire.TypeEntries || err != nil || got.Count != 1 {
		t.Errorf("the largest record: got %v, %v", got.Count, err)
	}
}
