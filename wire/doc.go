// Package wire turns the frames of the heliograph/1 protocol into values and
// values into frames. It knows no sockets and no clock.
//
// Every frame is a type, a length and a payload:
//
//	type u8 │ length u32 BE │ payload
//
// [Reader] splits a stream into frames and refuses a length beyond the limit of
// its type before it allocates. Each message has an Append method that writes a
// whole frame and a Decode function that reads a payload; every prefix of a
// frame reads as [io.ErrUnexpectedEOF]. Control messages are MessagePack maps
// with string keys: a reader ignores keys that it does not know. Bulk messages
// ([Chunk], [SnapshotEnd], [Entries]) are fixed headers in front of bytes.
//
// docs/PROTOCOL.md describes the format for other languages; its examples are
// the golden files in testdata.
package wire
