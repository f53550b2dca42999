package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/heliograph/heliograph"
)

const (
	entriesHeaderBytes = 37
	entriesCRCAt       = 32
	recordHeaderBytes  = 1 + 4
)

// Entries is a run of records in revision order. Its payload:
//
//	first revision u64 BE │ last revision u64 BE │ head u64 BE │
//	raw length u32 BE │ record count u32 BE │ CRC32C u32 BE │ flags u8 │ records
//
// The CRC32C covers the other header fields and the records as sent; with flag
// 0x01 they are one zstd frame; with flag 0x02 the last revision goes on in the
// next frame. A record:
//
//	key length u8 (17 or 18) │ revision key │ value length u32 BE │ value
type Entries struct {
	First, Last int64 // revisions of the first and the last record
	Head        int64 // the source's newest applied revision when this was encoded
	Continued   bool  // the next frame begins with more of revision Last
	Count       int   // records

	raw []byte
}

// EntriesEncoder builds entries frames without an allocation per record. Its
// buffers are used again by the next frame. It is not safe for concurrent use.
type EntriesEncoder struct {
	raw         []byte
	first, last int64
	count       uint32
}

// Reset forgets the records added since the last frame.
func (e *EntriesEncoder) Reset() { e.raw, e.first, e.last, e.count = e.raw[:0], 0, 0, 0 }

// RawBytes returns how many bytes the records added so far take, uncompressed.
func (e *EntriesEncoder) RawBytes() int { return len(e.raw) }

// Fits reports whether a record of that many bytes, key and value, can still be
// added to this frame. An empty frame takes any record that [Add] accepts.
func (e *EntriesEncoder) Fits(recordBytes int) bool {
	return len(e.raw)+recordHeaderBytes+recordBytes <= MaxEntriesBytes
}

// Add appends a record; it retains neither slice. A record beyond
// [MaxRecordBytes], one that does not fit, or one with a malformed key is
// refused and changes nothing.
func (e *EntriesEncoder) Add(key, value []byte) error {
	k, err := heliograph.ParseRevisionKey(key)
	if err != nil {
		return err
	}
	if n := len(key) + len(value); n > MaxRecordBytes || !e.Fits(n) {
		return fmt.Errorf("revision %d: record of %d bytes: %w", k.Main, n, ErrTooLarge)
	}
	if e.count == 0 {
		e.first = k.Main
	}
	e.last = k.Main
	e.count++
	e.raw = append(e.raw, byte(len(key)))
	e.raw = append(e.raw, key...)
	e.raw = binary.BigEndian.AppendUint32(e.raw, uint32(len(value)))
	e.raw = append(e.raw, value...)
	return nil
}

// AppendFrame appends the frame of all records since the last Reset to dst, and
// resets. A nil c sends them uncompressed.
func (e *EntriesEncoder) AppendFrame(dst []byte, head int64, continued bool, c *Compressor) []byte {
	body, packed := c.compress(e.raw)
	b, start := beginFrame(dst, TypeEntries)
	b = binary.BigEndian.AppendUint64(b, uint64(e.first))
	b = binary.BigEndian.AppendUint64(b, uint64(e.last))
	b = binary.BigEndian.AppendUint64(b, uint64(head))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.raw)))
	b = binary.BigEndian.AppendUint32(b, e.count)
	var flags byte
	if packed {
		flags |= flagZstd
	}
	if continued {
		flags |= flagContinued
	}
	b = append(b, 0, 0, 0, 0, flags)
	b = append(b, body...)
	putChecksum(b[start+HeaderBytes:], entriesCRCAt)
	e.Reset()
	return endFrame(b, start)
}

// DecodeEntries reads an entries payload. The records alias the payload or d's
// buffer and are valid until either is used again. Lengths, checksum and every
// record's framing and revision key are checked here, so walking the records
// cannot fail.
func DecodeEntries(payload []byte, d *Decompressor) (Entries, error) {
	if len(payload) < entriesHeaderBytes {
		return Entries{}, fmt.Errorf("%s: %w", TypeEntries, io.ErrUnexpectedEOF)
	}
	e := Entries{
		First:     int64(binary.BigEndian.Uint64(payload)),
		Last:      int64(binary.BigEndian.Uint64(payload[8:])),
		Head:      int64(binary.BigEndian.Uint64(payload[16:])),
		Continued: payload[entriesHeaderBytes-1]&flagContinued != 0,
		Count:     int(binary.BigEndian.Uint32(payload[28:])),
	}
	raw := int64(binary.BigEndian.Uint32(payload[24:]))
	if e.First < 1 || e.Last < e.First || e.Head < 0 || raw > MaxEntriesBytes || e.Count < 1 {
		return Entries{}, fmt.Errorf("%s: %w: revisions %d to %d, %d records, %d bytes", TypeEntries, ErrMalformed, e.First, e.Last, e.Count, raw)
	}
	var err error
	e.raw, err = openBody(payload, entriesCRCAt, entriesHeaderBytes, flagZstd|flagContinued, int(raw), d)
	if err == nil {
		err = e.check()
	}
	if err != nil {
		return Entries{}, fmt.Errorf("%s from revision %d: %w", TypeEntries, e.First, err)
	}
	return e, nil
}

func (e Entries) check() error {
	rest, count, prev := e.raw, 0, heliograph.RevisionKey{Main: e.First}
	for len(rest) > 0 {
		key, _, next, ok := cutRecord(rest)
		if !ok {
			return fmt.Errorf("%w: record %d does not end", ErrMalformed, count)
		}
		k, err := heliograph.ParseRevisionKey(key)
		if err != nil {
			return fmt.Errorf("%w: record %d: %w", ErrMalformed, count, err)
		}
		// Within a revision sub revisions rise by one; revisions rise by one.
		sameRev := k.Main == prev.Main && (count == 0 || k.Sub == prev.Sub+1)
		nextRev := count > 0 && k.Main == prev.Main+1 && k.Sub == 0
		if !sameRev && !nextRev {
			return fmt.Errorf("%w: record %d is %d/%d after %d/%d", ErrMalformed, count, k.Main, k.Sub, prev.Main, prev.Sub)
		}
		rest, prev = next, k
		count++
	}
	if count != e.Count || prev.Main != e.Last {
		return fmt.Errorf("%w: %d records up to revision %d instead of %d up to %d", ErrMalformed, count, prev.Main, e.Count, e.Last)
	}
	return nil
}

// cutRecord returns the first record of raw and what follows it.
func cutRecord(raw []byte) (key, value, rest []byte, ok bool) {
	k := int(raw[0])
	if len(raw) < 1+k+4 {
		return nil, nil, nil, false
	}
	key = raw[1 : 1+k]
	v := int64(binary.BigEndian.Uint32(raw[1+k:]))
	rest = raw[1+k+4:]
	if int64(len(rest)) < v {
		return nil, nil, nil, false
	}
	return key, rest[:v:v], rest[v:], true
}

// All walks the records in order. The slices are valid as long as the Entries.
func (e Entries) All(yield func(heliograph.Record) bool) {
	for rest := e.raw; len(rest) > 0; {
		key, value, next, _ := cutRecord(rest)
		if !yield(heliograph.Record{Key: key, Value: value}) {
			return
		}
		rest = next
	}
}

// ErrOrder says that entries do not follow those before them.
var ErrOrder = errors.New("entries do not follow the last ones")

// Assembler makes batches of entries frames: whole revisions, each after the one
// before. It is not safe for concurrent use.
type Assembler struct {
	next    int64               // the revision that must come next
	sub     int64               // and its sub revision
	records []heliograph.Record // of a batch that is handed out, used again
	partial heliograph.Batch    // a revision that goes on in the next frame
	bytes   int64               // held by partial
}

// NewAssembler returns an assembler whose first batch has to be revision next.
func NewAssembler(next int64) *Assembler { return &Assembler{next: next} }

// Add hands every batch that e completes to emit, in order. A batch's memory is
// valid only during the call. The first error of emit ends Add.
func (a *Assembler) Add(e Entries, emit func(heliograph.Batch) error) error {
	a.records = a.records[:0]
	rev := int64(0) // of the records gathered so far
	for r := range e.All {
		k, err := heliograph.ParseRevisionKey(r.Key)
		if err != nil {
			return err
		}
		if k.Main != rev && len(a.records) > 0 {
			if err := a.emit(rev, emit); err != nil {
				return err
			}
		}
		if k.Main != a.next || k.Sub != a.sub {
			return fmt.Errorf("%w: got %d/%d, want %d/%d", ErrOrder, k.Main, k.Sub, a.next, a.sub)
		}
		rev = k.Main
		a.sub++
		a.records = append(a.records, r)
	}
	if e.Continued {
		return a.hold(rev)
	}
	return a.emit(rev, emit)
}

// Pending returns the bytes held of a revision that is not whole yet.
func (a *Assembler) Pending() int64 { return a.bytes }

func (a *Assembler) emit(rev int64, emit func(heliograph.Batch) error) error {
	b := heliograph.Batch{Rev: rev, Records: a.records}
	if a.bytes > 0 {
		b.Records = append(a.partial.Records, a.records...)
		a.partial, a.bytes = heliograph.Batch{}, 0
	}
	a.next, a.sub, a.records = rev+1, 0, a.records[:0]
	return emit(b)
}

// hold keeps a copy of the records gathered: their memory belongs to the frame.
func (a *Assembler) hold(rev int64) error {
	a.partial.Rev = rev
	for _, r := range a.records {
		n := len(r.Key) + len(r.Value)
		a.bytes += int64(n)
		if a.bytes > heliograph.MaxBatchBytes {
			return fmt.Errorf("revision %d: %w: more than %d bytes", rev, ErrTooLarge, heliograph.MaxBatchBytes)
		}
		buf := append(append(make([]byte, 0, n), r.Key...), r.Value...)
		a.partial.Records = append(a.partial.Records, heliograph.Record{Key: buf[:len(r.Key):len(r.Key)], Value: buf[len(r.Key):]})
	}
	a.records = a.records[:0]
	return nil
}
