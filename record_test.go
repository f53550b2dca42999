package heliograph_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"testing"

	"github.com/heliograph/heliograph"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

func TestRevisionKey(t *testing.T) {
	for _, test := range []struct {
		key heliograph.RevisionKey
		hex string
	}{
		{heliograph.RevisionKey{}, "00000000000000005f0000000000000000"},
		{heliograph.RevisionKey{Main: 2}, "00000000000000025f0000000000000000"},
		{heliograph.RevisionKey{Main: 2, Sub: 3, Delete: true}, "00000000000000025f000000000000000374"},
		{heliograph.RevisionKey{Main: math.MaxInt64, Sub: math.MaxInt64}, "7fffffffffffffff5f7fffffffffffffff"},
	} {
		want, err := hex.DecodeString(test.hex)
		if err != nil {
			t.Fatal(err)
		}
		if got := test.key.Append([]byte("kept"))[4:]; !bytes.Equal(got, want) {
			t.Errorf("%+v: got %x, want %x", test.key, got, want)
		}
		if got, err := heliograph.ParseRevisionKey(want); err != nil || got != test.key {
			t.Errorf("%s: got %+v, %v; want %+v", test.hex, got, err, test.key)
		}
		// The bytes are etcd's own: it reads them, and writes them again.
		etcd := mvcc.BytesToBucketKey(want)
		if etcd.Main != test.key.Main || etcd.Sub != test.key.Sub {
			t.Errorf("%s: etcd reads %+v, want %+v", test.hex, etcd, test.key)
		}
		if got := mvcc.BucketKeyToBytes(etcd, mvcc.NewRevBytes()); !bytes.Equal(got, want) {
			t.Errorf("%+v: etcd writes %x, want %x", test.key, got, want)
		}
	}
}

func TestRevisionKeyRefuses(t *testing.T) {
	whole := heliograph.RevisionKey{Main: 2, Sub: 1, Delete: true}.Append(nil)
	for n := range whole {
		if _, err := heliograph.ParseRevisionKey(whole[:n]); (err == nil) != (n == heliograph.PutKeyBytes) {
			t.Errorf("a prefix of %d bytes: %v", n, err)
		}
	}
	edit := func(at int, to byte) []byte {
		b := bytes.Clone(whole)
		b[at] = to
		return b
	}
	for _, key := range [][]byte{
		append(bytes.Clone(whole), 0), // too long
		edit(0, 0x80),                 // negative revision
		edit(8, '-'),                  // no separator
		edit(9, 0x80),                 // negative sub revision
		edit(17, 'T'),                 // no tombstone mark
	} {
		if got, err := heliograph.ParseRevisionKey(key); err == nil {
			t.Errorf("%x was read as %+v", key, got)
		}
	}
}

func TestParseRevisionKeyAllocatesNothing(t *testing.T) {
	key := heliograph.RevisionKey{Main: 7}.Append(nil)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := heliograph.ParseRevisionKey(key); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestBatchBytes(t *testing.T) {
	b := heliograph.Batch{Rev: 2, Records: []heliograph.Record{
		{Key: make([]byte, 17), Value: make([]byte, 100)},
		{Key: make([]byte, 18), Value: nil},
	}}
	if got, want := b.Bytes(), int64(135); got != want {
		t.Errorf("got %d, want %d", got, want)
	}
	if got := (heliograph.Batch{}).Bytes(); got != 0 {
		t.Errorf("empty: got %d, want 0", got)
	}
}

func FuzzParseRevisionKey(f *testing.F) {
	f.Add(heliograph.RevisionKey{Main: 2}.Append(nil))
	f.Add(heliograph.RevisionKey{Main: math.MaxInt64, Sub: 1, Delete: true}.Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := heliograph.ParseRevisionKey(b)
		if err != nil {
			return
		}
		if got := k.Append(nil); !bytes.Equal(got, b) {
			t.Errorf("%x was read as %+v, which is written as %x", b, k, got)
		}
	})
}
