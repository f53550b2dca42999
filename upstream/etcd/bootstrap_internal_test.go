package etcd

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"pgregory.net/rapid"

	"github.com/heliograph/heliograph"
)

// sink is a receiver in memory.
type sink struct{ bytes.Buffer }

func (s *sink) WriteChunk(offset int64, p []byte) error {
	if offset != int64(s.Len()) {
		panic("out of order")
	}
	s.Write(p)
	return nil
}
func (s *sink) Commit(int64, [32]byte, heliograph.Origin) (int64, error) { return 0, nil }
func (s *sink) Abort() error                                             { return nil }

// However the stream is cut into pieces, the file and its sum are told apart.
func TestBodySplitsFileAndSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		file := bytes.Repeat([]byte{1, 2, 3, 4}, pageBytes/4*rapid.IntRange(1, 8).Draw(t, "pages"))
		want := sha256.Sum256(file)
		stream := append(bytes.Clone(file), want[:]...)
		var got sink
		b := body{receiver: &got, total: int64(len(file))}
		for len(stream) > 0 {
			n := rapid.IntRange(1, len(stream)).Draw(t, "piece")
			if err := b.write(stream[:n]); err != nil {
				t.Fatal(err)
			}
			stream = stream[n:]
		}
		sum, err := b.sum()
		if err != nil || sum != want || !bytes.Equal(got.Bytes(), file) {
			t.Errorf("sum %x, %v; %d bytes of the file", sum, err, got.Len())
		}
	})
}

func TestBodyRefusesAnotherLength(t *testing.T) {
	const size = 2 * pageBytes
	stream := make([]byte, size+sumBytes)
	for n := range stream {
		b := body{receiver: &sink{}, total: size}
		if err := b.write(stream[:n]); err != nil {
			t.Fatal(err)
		}
		if _, err := b.sum(); err == nil {
			t.Fatalf("%d bytes of %d taken for the whole", n, len(stream))
		}
	}
	b := body{receiver: &sink{}, total: size}
	if err := b.write(append(stream, 0)); err == nil {
		t.Error("a byte too many was taken")
	}
	b = body{receiver: &sink{}, total: size + 1}
	if err := b.write(append(stream, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.sum(); err == nil {
		t.Error("a file that is no whole number of pages was taken")
	}
}
