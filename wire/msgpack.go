package wire

import (
	"errors"
	"fmt"
	"io"

	"github.com/tinylib/msgp/msgp"
)

// fields reads a MessagePack map with string keys, one value at a time. The
// first error sticks.
type fields struct {
	rest []byte
	n    uint32 // pairs that are still to come
	seen map[string]bool
	err  error
}

func readFields(payload []byte) *fields {
	f := &fields{seen: make(map[string]bool, 12)}
	if len(payload) > MaxControlPayload {
		f.err = fmt.Errorf("%w: %d bytes", ErrTooLarge, len(payload))
		return f
	}
	f.n, f.rest, f.err = msgp.ReadMapHeaderBytes(payload)
	return f
}

// next returns the next key; ok is false at the end of the map or after an error.
func (f *fields) next() (key string, ok bool) {
	if f.err != nil || f.n == 0 {
		return "", false
	}
	f.n--
	var raw []byte
	raw, f.rest, f.err = msgp.ReadMapKeyZC(f.rest)
	if f.err != nil {
		return "", false
	}
	key = string(raw)
	if f.seen[key] {
		f.err = fmt.Errorf("%w: key %.40q appears twice", ErrMalformed, key)
		return "", false
	}
	f.seen[key] = true
	return key, true
}

func (f *fields) skip() {
	if f.err == nil {
		f.rest, f.err = msgp.Skip(f.rest)
	}
}

func (f *fields) str(max int) (s string) {
	if f.err != nil {
		return ""
	}
	var raw []byte
	raw, f.rest, f.err = msgp.ReadStringZC(f.rest)
	if f.err == nil && len(raw) > max {
		f.err = fmt.Errorf("%w: text of %d bytes, at most %d", ErrMalformed, len(raw), max)
	}
	if f.err != nil {
		return ""
	}
	return string(raw)
}

func (f *fields) strs(maxCount, maxBytes int) (list []string) {
	if f.err != nil {
		return nil
	}
	var n uint32
	n, f.rest, f.err = msgp.ReadArrayHeaderBytes(f.rest)
	if f.err == nil && int64(n) > int64(maxCount) {
		f.err = fmt.Errorf("%w: list of %d, at most %d", ErrMalformed, n, maxCount)
	}
	for range n {
		if f.err != nil {
			return nil
		}
		list = append(list, f.str(maxBytes))
	}
	return list
}

func (f *fields) u64() (v uint64) {
	if f.err == nil {
		v, f.rest, f.err = msgp.ReadUint64Bytes(f.rest)
	}
	return v
}

// rev reads a revision: a u64 that fits into etcd's int64.
func (f *fields) rev() int64 {
	v := f.u64()
	if f.err == nil && int64(v) < 0 {
		f.err = fmt.Errorf("%w: revision %d", ErrMalformed, v)
	}
	return int64(v)
}

func (f *fields) u16() (v uint16) {
	if f.err == nil {
		v, f.rest, f.err = msgp.ReadUint16Bytes(f.rest)
	}
	return v
}

func (f *fields) u8() (v uint8) {
	if f.err == nil {
		v, f.rest, f.err = msgp.ReadUint8Bytes(f.rest)
	}
	return v
}

func (f *fields) boolean() (v bool) {
	if f.err == nil {
		v, f.rest, f.err = msgp.ReadBoolBytes(f.rest)
	}
	return v
}

// done returns the error of the whole map: the one that stuck, bytes behind the
// map, or a required key that is missing.
func (f *fields) done(what Type, required ...string) error {
	err := f.err
	switch {
	case err == nil && len(f.rest) > 0:
		err = fmt.Errorf("%w: %d bytes behind the map", ErrMalformed, len(f.rest))
	case err == nil:
		for _, key := range required {
			if !f.seen[key] {
				err = fmt.Errorf("%w: key %q is missing", ErrMalformed, key)
				break
			}
		}
	case errors.Is(err, msgp.ErrShortBytes):
		err = io.ErrUnexpectedEOF
	case !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge):
		err = fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// shorten is cut for a sentence, which shows that it goes on.
func shorten(s string, max int) string {
	const more = "…"
	if len(s) <= max {
		return s
	}
	return cut(s, max-len(more)) + more
}

// cut shortens s to what a frame may hold, at a rune's beginning.
func cut(s string, max int) string {
	if len(s) <= max {
		return s
	}
	for max > 0 && s[max]&0xc0 == 0x80 {
		max--
	}
	return s[:max]
}
