package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	chunkHeaderBytes = 17
	snapshotEndBytes = 8 + 8 + 32
)

// Chunk is a piece of a snapshot. Its payload:
//
//	offset u64 BE │ raw length u32 BE │ CRC32C u32 BE │ flags u8 │ data
//
// The CRC32C covers the other header fields and the data as sent; with flag
// 0x01 the data is one zstd frame.
type Chunk struct {
	Offset int64
	Data   []byte
}

// AppendChunk appends a chunk's frame to dst. len(data) must be 1 to
// [MaxChunkBytes]. A nil c sends the data as it is.
func AppendChunk(dst []byte, offset int64, data []byte, c *Compressor) []byte {
	body, packed := c.compress(data)
	b, start := beginFrame(dst, TypeChunk)
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, 0, 0, 0, 0, 0)
	if packed {
		b[len(b)-1] |= flagZstd
	}
	b = append(b, body...)
	putChecksum(b[start+HeaderBytes:], 12)
	return endFrame(b, start)
}

// DecodeChunk reads a chunk's payload. Data aliases the payload or d's buffer
// and is valid until either is used again.
func DecodeChunk(payload []byte, d *Decompressor) (Chunk, error) {
	if len(payload) < chunkHeaderBytes {
		return Chunk{}, fmt.Errorf("%s: %w", TypeChunk, io.ErrUnexpectedEOF)
	}
	c := Chunk{Offset: int64(binary.BigEndian.Uint64(payload))}
	raw := int64(binary.BigEndian.Uint32(payload[8:]))
	if c.Offset < 0 || raw < 1 || raw > MaxChunkBytes {
		return Chunk{}, fmt.Errorf("%s: %w: %d bytes at offset %d", TypeChunk, ErrMalformed, raw, c.Offset)
	}
	var err error
	c.Data, err = openBody(payload, 12, chunkHeaderBytes, flagZstd, int(raw), d)
	if err != nil {
		return Chunk{}, fmt.Errorf("%s at offset %d: %w", TypeChunk, c.Offset, err)
	}
	return c, nil
}

// SnapshotEnd follows the last chunk of a snapshot. Its payload:
//
//	revision u64 BE │ size u64 BE │ SHA-256 of the whole, 32 bytes
type SnapshotEnd struct {
	Rev    int64
	Size   int64
	SHA256 [32]byte
}

// AppendFrame implements [Message].
func (s SnapshotEnd) AppendFrame(dst []byte) []byte {
	b, start := beginFrame(dst, TypeSnapshotEnd)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Rev))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Size))
	b = append(b, s.SHA256[:]...)
	return endFrame(b, start)
}

// DecodeSnapshotEnd reads the payload of a snapshot's end.
func DecodeSnapshotEnd(payload []byte) (SnapshotEnd, error) {
	switch {
	case len(payload) < snapshotEndBytes:
		return SnapshotEnd{}, fmt.Errorf("%s: %w", TypeSnapshotEnd, io.ErrUnexpectedEOF)
	case len(payload) > snapshotEndBytes:
		return SnapshotEnd{}, fmt.Errorf("%s: %w: %d bytes", TypeSnapshotEnd, ErrMalformed, len(payload))
	}
	s := SnapshotEnd{
		Rev:    int64(binary.BigEndian.Uint64(payload)),
		Size:   int64(binary.BigEndian.Uint64(payload[8:])),
		SHA256: [32]byte(payload[16:]),
	}
	if s.Rev < 0 || s.Size < 0 {
		return SnapshotEnd{}, fmt.Errorf("%s: %w: revision %d, size %d", TypeSnapshotEnd, ErrMalformed, s.Rev, s.Size)
	}
	return s, nil
}

// checksum is the CRC32C of a bulk payload without the four bytes at crcAt.
func checksum(payload []byte, crcAt int) uint32 {
	return crc32.Update(crc32.Checksum(payload[:crcAt], castagnoli), castagnoli, payload[crcAt+4:])
}

func putChecksum(payload []byte, crcAt int) {
	binary.BigEndian.PutUint32(payload[crcAt:], checksum(payload, crcAt))
}

// openBody checks the checksum at crcAt and the flags behind it, and returns the
// raw bytes behind the header. The checksum comes first: nothing that the sender
// did not write reaches the decompressor.
func openBody(payload []byte, crcAt, header int, known byte, rawBytes int, d *Decompressor) ([]byte, error) {
	flags, body := payload[header-1], payload[header:]
	if flags&flagZstd == 0 && len(body) < rawBytes {
		return nil, io.ErrUnexpectedEOF
	}
	if got, want := checksum(payload, crcAt), binary.BigEndian.Uint32(payload[crcAt:]); got != want {
		return nil, fmt.Errorf("%w: %08x instead of %08x", ErrChecksum, got, want)
	}
	if flags&^known != 0 {
		return nil, fmt.Errorf("%w: flags %02x", ErrMalformed, flags)
	}
	if flags&flagZstd != 0 {
		return d.decompress(body, rawBytes)
	}
	if len(body) != rawBytes {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrMalformed, len(body), rawBytes)
	}
	return body, nil
}
