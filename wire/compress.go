package wire

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Flags of bulk frames.
const (
	flagZstd      = 0x01 // the bytes behind the header are one zstd frame
	flagContinued = 0x02 // the last revision goes on in the next frame
)

// minCompressBytes is below what a zstd frame can save enough to pay for itself.
const minCompressBytes = 512

// maxSkips bounds how many frames in a row are sent without trying to compress.
const maxSkips = 64

// Compressor compresses what pays and leaves the rest alone: after a frame that
// did not shrink by an eighth it skips one frame, then two, four, up to 64,
// before it tries again. The zero value is ready; it is not safe for concurrent
// use.
type Compressor struct {
	enc   *zstd.Encoder
	buf   []byte
	skip  int // frames still to skip
	skips int // length of the next run of skips
}

// compress returns raw compressed and true, or raw itself. The result is valid
// until the next call.
func (c *Compressor) compress(raw []byte) ([]byte, bool) {
	if c == nil || len(raw) < minCompressBytes {
		return raw, false
	}
	if c.skip > 0 {
		c.skip--
		return raw, false
	}
	if c.enc == nil {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			return raw, false // only an option out of range; plain bytes are always right
		}
		c.enc = enc
	}
	c.buf = c.enc.EncodeAll(raw, c.buf[:0])
	if len(c.buf) > len(raw)-len(raw)/8 {
		c.skips = min(max(1, 2*c.skips), maxSkips)
		c.skip = c.skips
		return raw, false
	}
	c.skips = 0
	return c.buf, true
}

// Decompressor undoes a Compressor. The zero value is ready; it is not safe for
// concurrent use.
type Decompressor struct {
	dec *zstd.Decoder
	buf []byte
}

// decompress returns the rawBytes bytes that data decompresses to, valid until
// the next call. The caller has checked rawBytes against a limit.
func (d *Decompressor) decompress(data []byte, rawBytes int) ([]byte, error) {
	if d.dec == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(MaxEntriesBytes+1<<20), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		d.dec = dec
	}
	if cap(d.buf) < rawBytes {
		d.buf = make([]byte, 0, rawBytes)
	}
	// The capacity is the limit: a frame that holds more fails.
	out, err := d.dec.DecodeAll(data, d.buf[:0:rawBytes])
	if err != nil {
		return nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
	}
	if len(out) != rawBytes {
		return nil, fmt.Errorf("%w: decompressed to %d bytes instead of %d", ErrMalformed, len(out), rawBytes)
	}
	return out, nil
}
