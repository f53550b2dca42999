package wire_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/tinylib/msgp/msgp"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

// Whatever the size of a change, its frames fit and say the same.
func TestLeasesAreCutIntoFrames(t *testing.T) {
	for _, size := range []struct{ put, removed, frames int }{
		{0, 0, 1}, {1, 0, 1}, {0, 1, 1}, {128, 128, 1}, {129, 0, 2}, {3, 300, 3}, {1000, 1, 8},
	} {
		change := heliograph.LeaseChange{Reset: size.removed == 0}
		for i := range size.put {
			change.Put = append(change.Put, heliograph.Lease{ID: math.MaxInt64 - int64(i), TTL: heliograph.MaxLeaseTTL})
		}
		for i := range size.removed {
			change.Removed = append(change.Removed, math.MinInt64+int64(i))
		}
		var got heliograph.LeaseChange
		frames := 0
		for rest, more := change, true; more; frames++ {
			var f wire.Leases
			f, rest = wire.CutLeases(rest, frames == 0)
			frame := f.AppendFrame(nil)
			if len(frame) > wire.HeaderBytes+wire.MaxControlPayload {
				t.Fatalf("%+v: a frame of %d bytes", size, len(frame))
			}
			read, err := wire.DecodeLeases(frame[wire.HeaderBytes:])
			if err != nil {
				t.Fatalf("%+v: %v", size, err)
			}
			if read.Reset != (change.Reset && frames == 0) {
				t.Errorf("%+v: frame %d resets: %v", size, frames, read.Reset)
			}
			got.Reset = got.Reset || read.Reset
			got.Put, got.Removed = append(got.Put, read.Put...), append(got.Removed, read.Removed...)
			more = read.More
		}
		if got.Reset != change.Reset || !slices.Equal(got.Put, change.Put) || !slices.Equal(got.Removed, change.Removed) || frames != size.frames {
			t.Errorf("%+v: %d leases and %d removed in %d frames", size, len(got.Put), len(got.Removed), frames)
		}
	}
}

func TestMalformedLeases(t *testing.T) {
	list := func(key string, numbers ...int64) []byte {
		b := msgp.AppendMapHeader(nil, 3)
		b = msgp.AppendBool(msgp.AppendString(b, "reset"), false)
		b = msgp.AppendBool(msgp.AppendString(b, "more"), false)
		b = msgp.AppendArrayHeader(msgp.AppendString(b, key), uint32(len(numbers)))
		for _, n := range numbers {
			b = msgp.AppendInt64(b, n)
		}
		return b
	}
	if _, err := wire.DecodeLeases(list("put", 1, 2)); err != nil {
		t.Fatal(err)
	}
	for name, payload := range map[string][]byte{
		"no TTL":        list("put", 1, 2, 3),
		"TTL of 0":      list("put", 1, 0),
		"negative TTL":  list("put", 1, -1),
		"TTL too long":  list("put", 1, heliograph.MaxLeaseTTL+1),
		"lease 0":       list("put", 0, 1),
		"too many put":  list("put", slices.Repeat([]int64{1, 2}, wire.MaxFrameLeases+1)...),
		"too many gone": list("removed", make([]int64, wire.MaxFrameLeases+1)...),
	} {
		if got, err := wire.DecodeLeases(payload); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
