package wire

import (
	"fmt"

	"github.com/tinylib/msgp/msgp"

	"github.com/heliograph/heliograph"
)

// MaxFrameLeases is how many leases a frame puts at most, and how many ids it
// removes at most: with the largest numbers, both together fit.
const MaxFrameLeases = 128

// Leases tells a mirror how the origin's leases have changed. One change may take
// several frames, one behind the other: a mirror applies it when it has the last.
type Leases struct {
	Reset   bool // the change's Put, of all its frames, is all that there are
	More    bool // the next leases frame goes on with the same change
	Put     []heliograph.Lease
	Removed []int64
}

// CutLeases takes the next frame of a change from it, and returns what is left.
// first says that it is the change's first.
func CutLeases(c heliograph.LeaseChange, first bool) (Leases, heliograph.LeaseChange) {
	put, removed := min(len(c.Put), MaxFrameLeases), min(len(c.Removed), MaxFrameLeases)
	f := Leases{Reset: c.Reset && first, Put: c.Put[:put:put], Removed: c.Removed[:removed:removed]}
	c.Put, c.Removed = c.Put[put:], c.Removed[removed:]
	f.More = len(c.Put)+len(c.Removed) > 0
	return f, c
}

// AppendFrame implements [Message]. Lists longer than [MaxFrameLeases] are cut.
func (l Leases) AppendFrame(dst []byte) []byte {
	put, removed := l.Put[:min(len(l.Put), MaxFrameLeases)], l.Removed[:min(len(l.Removed), MaxFrameLeases)]
	n := uint32(2)
	for _, list := range []int{len(put), len(removed)} {
		if list > 0 {
			n++
		}
	}
	b, start := beginFrame(dst, TypeLeases)
	b = msgp.AppendMapHeader(b, n)
	b = msgp.AppendBool(msgp.AppendString(b, "reset"), l.Reset)
	b = msgp.AppendBool(msgp.AppendString(b, "more"), l.More)
	if len(put) > 0 {
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "put"), 2*uint32(len(put)))
		for _, p := range put {
			b = msgp.AppendInt64(msgp.AppendInt64(b, p.ID), p.TTL)
		}
	}
	if len(removed) > 0 {
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "removed"), uint32(len(removed)))
		for _, id := range removed {
			b = msgp.AppendInt64(b, id)
		}
	}
	return endFrame(b, start)
}

// DecodeLeases reads the payload of a leases frame. It retains nothing of it.
func DecodeLeases(payload []byte) (Leases, error) {
	var l Leases
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "reset":
			l.Reset = f.boolean()
		case "more":
			l.More = f.boolean()
		case "put":
			l.Put = f.leases()
		case "removed":
			l.Removed = f.i64s(MaxFrameLeases)
		default:
			f.skip()
		}
	}
	return l, f.done(TypeLeases, "reset", "more")
}

// leases reads a flat list of ids and TTLs in turn.
func (f *fields) leases() []heliograph.Lease {
	flat := f.i64s(2 * MaxFrameLeases)
	if f.err == nil && len(flat)%2 != 0 {
		f.err = fmt.Errorf("%w: the last of %d numbers is a lease without a TTL", ErrMalformed, len(flat))
	}
	if f.err != nil || len(flat) == 0 {
		return nil
	}
	list := make([]heliograph.Lease, 0, len(flat)/2)
	for i := 0; i < len(flat); i += 2 {
		l := heliograph.Lease{ID: flat[i], TTL: flat[i+1]}
		if l.ID == 0 || l.TTL < 1 || l.TTL > heliograph.MaxLeaseTTL {
			f.err = fmt.Errorf("%w: lease %x with a TTL of %d seconds", ErrMalformed, l.ID, l.TTL)
			return nil
		}
		list = append(list, l)
	}
	return list
}

// i64s reads a list of numbers; nil if it is empty.
func (f *fields) i64s(maxCount int) []int64 {
	if f.err != nil {
		return nil
	}
	var n uint32
	n, f.rest, f.err = msgp.ReadArrayHeaderBytes(f.rest)
	if f.err == nil && int64(n) > int64(maxCount) {
		f.err = fmt.Errorf("%w: list of %d, at most %d", ErrMalformed, n, maxCount)
	}
	if f.err != nil || n == 0 {
		return nil
	}
	list := make([]int64, 0, n)
	for range n {
		var v int64
		if v, f.rest, f.err = msgp.ReadInt64Bytes(f.rest); f.err != nil {
			return nil
		}
		list = append(list, v)
	}
	return list
}
