package wire_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

const benchRecords = 1000

func benchEntries(b *testing.B, valueBytes int) (keys, values [][]byte) {
	b.Helper()
	rng := rand.NewChaCha8([32]byte{1})
	for i := range benchRecords {
		v := make([]byte, valueBytes)
		if _, err := rng.Read(v); err != nil {
			b.Fatal(err)
		}
		keys, values = append(keys, key(int64(i)+2, 0)), append(values, v)
	}
	return keys, values
}

func report(b *testing.B, bytes int) {
	b.SetBytes(int64(bytes))
	b.ReportMetric(float64(b.N)*benchRecords/b.Elapsed().Seconds(), "records/s")
	b.ReportAllocs()
}

func BenchmarkEncodeEntries(b *testing.B) {
	for _, size := range []int{256, 4096} {
		b.Run(fmt.Sprintf("value=%d", size), func(b *testing.B) {
			keys, values := benchEntries(b, size)
			var enc wire.EntriesEncoder
			var out []byte
			for b.Loop() {
				for i, k := range keys {
					if err := enc.Add(k, values[i]); err != nil {
						b.Fatal(err)
					}
				}
				out = enc.AppendFrame(out[:0], 1, false, nil)
			}
			report(b, len(out))
		})
	}
}

func BenchmarkDecodeEntries(b *testing.B) {
	for _, size := range []int{256, 4096} {
		b.Run(fmt.Sprintf("value=%d", size), func(b *testing.B) {
			keys, values := benchEntries(b, size)
			var enc wire.EntriesEncoder
			for i, k := range keys {
				if err := enc.Add(k, values[i]); err != nil {
					b.Fatal(err)
				}
			}
			frame := enc.AppendFrame(nil, 1, false, nil)
			var d wire.Decompressor
			var n int
			for b.Loop() {
				e, err := wire.DecodeEntries(frame[wire.HeaderBytes:], &d)
				if err != nil {
					b.Fatal(err)
				}
				a := wire.NewAssembler(e.First)
				err = a.Add(e, func(batch heliograph.Batch) error { n += len(batch.Records); return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
			if n != b.N*benchRecords {
				b.Fatalf("%d records", n)
			}
			report(b, len(frame))
		})
	}
}
