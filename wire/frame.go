package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/heliograph/heliograph"
)

// Version is the protocol version that this package speaks; ALPN is the TLS
// application protocol that belongs to it.
const (
	Version = 1
	ALPN    = "heliograph/1"
)

// Type is the first byte of a frame.
type Type uint8

// The frame types. Control frames go both ways on the first stream, bulk
// frames from the source on unidirectional streams.
const (
	TypeHello          Type = 0x01
	TypeHelloAck       Type = 0x02
	TypeHeartbeat      Type = 0x10
	TypeAck            Type = 0x11
	TypeReadIndex      Type = 0x12
	TypeReadIndexReply Type = 0x13
	TypeGoodbye        Type = 0x14
	TypeLeases         Type = 0x15
	TypeVerify         Type = 0x16
	TypeVerifyReply    Type = 0x17
	TypeChunk          Type = 0x20
	TypeSnapshotEnd    Type = 0x21
	TypeEntries        Type = 0x22

	firstVoterType Type = 0x80
	lastVoterType  Type = 0x8f
)

// Voter reports whether the type is one of those with which a member votes,
// proposes or changes the membership. An observer that sends one is refused.
func (t Type) Voter() bool { return firstVoterType <= t && t <= lastVoterType }

var typeNames = map[Type]string{
	TypeHello:          "hello",
	TypeHelloAck:       "hello-ack",
	TypeHeartbeat:      "heartbeat",
	TypeAck:            "ack",
	TypeReadIndex:      "read-index",
	TypeReadIndexReply: "read-index-reply",
	TypeGoodbye:        "goodbye",
	TypeLeases:         "leases",
	TypeVerify:         "verify",
	TypeVerifyReply:    "verify-reply",
	TypeChunk:          "snapshot-chunk",
	TypeSnapshotEnd:    "snapshot-end",
	TypeEntries:        "entries",
}

// String returns the type's name.
func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	if t.Voter() {
		return fmt.Sprintf("voter-class 0x%02x", uint8(t))
	}
	return fmt.Sprintf("unknown 0x%02x", uint8(t))
}

// Limits of the protocol, in bytes unless they say otherwise.
const (
	HeaderBytes       = 5        // type and length
	MaxControlPayload = 4096     // of every control frame, hello and ack included
	MaxChunkBytes     = 1 << 20  // raw bytes in one snapshot chunk
	MaxRecordBytes    = 32 << 20 // key and value of one record
	MaxEntriesBytes   = MaxRecordBytes + 64<<10
	MaxDetailBytes    = 1024 // of a sentence in an ack, a goodbye or a reply
	MaxPath           = 16   // nodes in a chain of mirrors
)

// Errors that tell a peer's frame from a broken connection. All of them mean
// that the connection cannot go on.
var (
	ErrTooLarge   = errors.New("frame is larger than its type allows")
	ErrUnexpected = errors.New("frame type is not expected here")
	ErrMalformed  = errors.New("frame is malformed")
	ErrChecksum   = errors.New("frame has a wrong checksum")
)

// Class is a set of frame types that may appear on one kind of stream.
type Class uint8

// The classes.
const (
	Control Class = iota + 1 // the first, bidirectional stream
	Bulk                     // unidirectional streams
)

// limit returns the largest payload of t on a stream of class c.
func (c Class) limit(t Type) (int, bool) {
	switch t {
	case TypeHello, TypeHelloAck, TypeHeartbeat, TypeAck, TypeReadIndex, TypeReadIndexReply, TypeGoodbye, TypeLeases,
		TypeVerify, TypeVerifyReply:
		return MaxControlPayload, c == Control
	case TypeChunk:
		return chunkHeaderBytes + MaxChunkBytes, c == Bulk
	case TypeSnapshotEnd:
		return snapshotEndBytes, c == Bulk
	case TypeEntries:
		return entriesHeaderBytes + MaxEntriesBytes, c == Bulk
	}
	return MaxControlPayload, c == Control && t.Voter()
}

// Reader splits a stream into frames. It is not safe for concurrent use.
type Reader struct {
	r     io.Reader
	class Class
	head  [HeaderBytes]byte
	buf   []byte
}

// NewReader returns a reader of the frames of one class. It reads r in small
// pieces: hand it a buffered reader where that matters.
func NewReader(r io.Reader, class Class) *Reader {
	return &Reader{r: r, class: class}
}

// Next reads one frame. The payload is valid until the next call. The error is
// io.EOF at the end of the stream, io.ErrUnexpectedEOF within a frame, or wraps
// [ErrTooLarge] or [ErrUnexpected]; for those the type is returned too, and
// nothing of the payload has been read.
func (r *Reader) Next() (Type, []byte, error) {
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		return 0, nil, err
	}
	t, n := Type(r.head[0]), int64(binary.BigEndian.Uint32(r.head[1:]))
	limit, ok := r.class.limit(t)
	if !ok {
		return t, nil, fmt.Errorf("%w: %s", ErrUnexpected, t)
	}
	if n > int64(limit) {
		return t, nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrTooLarge, t, n, limit)
	}
	if int64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return t, nil, err
	}
	return t, r.buf, nil
}

// Message is a control message that can be sent.
type Message interface {
	// AppendFrame appends the whole frame to dst. Sentences that are too
	// long are cut, so the frame always fits its limit.
	AppendFrame(dst []byte) []byte
}

// beginFrame appends a frame header whose length endFrame fills in.
func beginFrame(dst []byte, t Type) (buf []byte, start int) {
	return append(dst, byte(t), 0, 0, 0, 0), len(dst)
}

func endFrame(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-HeaderBytes))
	return dst
}

// CodeOf returns the code with which a connection is closed because of err,
// which a [Reader] or a Decode function returned.
func CodeOf(t Type, err error) heliograph.Code {
	if t.Voter() {
		return heliograph.CodeObserverOnly
	}
	return heliograph.CodeProtocol
}
