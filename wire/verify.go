package wire

import (
	"fmt"
	"math"

	"github.com/tinylib/msgp/msgp"
)

// FeatureVerify is the feature of a source that answers the verify frame.
const FeatureVerify = "verify"

// Verify asks for a comparison of hashes up the chain.
type Verify struct {
	ID uint64 // chosen by the mirror, quoted in the reply
}

// AppendFrame implements [Message].
func (v Verify) AppendFrame(dst []byte) []byte {
	b, start := beginFrame(dst, TypeVerify)
	b = msgp.AppendMapHeader(b, 1)
	b = msgp.AppendUint64(msgp.AppendString(b, "id"), v.ID)
	return endFrame(b, start)
}

// DecodeVerify reads a verify request's payload.
func DecodeVerify(payload []byte) (Verify, error) {
	var v Verify
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "id":
			v.ID = f.u64()
		default:
			f.skip()
		}
	}
	return v, f.done(TypeVerify, "id")
}

// VerifyReply answers a Verify: etcd's HashKV at one revision and compaction
// revision, and what the source itself has there.
type VerifyReply struct {
	ID          uint64
	LSN         int64 // 0 if ErrorDetail is set
	CompactLSN  int64 // 0 if never compacted
	EtcdHash    uint32
	Hash        uint32 // of the source
	Endpoint    string // of the member of etcd that was asked
	ErrorDetail string // why it could not be learned; "" if it was
}

// AppendFrame implements [Message].
func (v VerifyReply) AppendFrame(dst []byte) []byte {
	b, start := beginFrame(dst, TypeVerifyReply)
	b = msgp.AppendMapHeader(b, 7)
	b = msgp.AppendUint64(msgp.AppendString(b, "id"), v.ID)
	b = appendRev(b, "lsn", v.LSN)
	b = appendRev(b, "compact_lsn", v.CompactLSN)
	b = msgp.AppendUint64(msgp.AppendString(b, "etcd_hash"), uint64(v.EtcdHash))
	b = msgp.AppendUint64(msgp.AppendString(b, "hash"), uint64(v.Hash))
	b = appendText(b, "endpoint", v.Endpoint)
	b = msgp.AppendString(msgp.AppendString(b, "error_detail"), cut(v.ErrorDetail, MaxDetailBytes))
	return endFrame(b, start)
}

// DecodeVerifyReply reads a verify reply's payload. It retains nothing of it.
func DecodeVerifyReply(payload []byte) (VerifyReply, error) {
	var v VerifyReply
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "id":
			v.ID = f.u64()
		case "lsn":
			v.LSN = f.rev()
		case "compact_lsn":
			v.CompactLSN = f.rev()
		case "etcd_hash":
			v.EtcdHash = f.u32()
		case "hash":
			v.Hash = f.u32()
		case "endpoint":
			v.Endpoint = f.str(maxText)
		case "error_detail":
			v.ErrorDetail = f.str(MaxDetailBytes)
		default:
			f.skip()
		}
	}
	return v, f.done(TypeVerifyReply, "id", "lsn", "compact_lsn", "etcd_hash", "hash", "endpoint", "error_detail")
}

func (f *fields) u32() uint32 {
	v := f.u64()
	if f.err == nil && v > math.MaxUint32 {
		f.err = fmt.Errorf("%w: hash %d has more than 32 bits", ErrMalformed, v)
	}
	return uint32(v)
}

// digests reads a list of numbers and digests in turn, at most so many pairs, with
// the numbers ascending and none above max.
func (f *fields) digests(pairs, max int64, take func(number int64, sum uint64)) {
	if f.err != nil {
		return
	}
	var n uint32
	n, f.rest, f.err = msgp.ReadArrayHeaderBytes(f.rest)
	if f.err == nil && (int64(n) > 2*pairs || n%2 != 0) {
		f.err = fmt.Errorf("%w: list of %d digests with their numbers, at most %d", ErrMalformed, n, 2*pairs)
	}
	last := int64(-1)
	for i := uint32(0); i < n && f.err == nil; i += 2 {
		number, sum := f.rev(), f.u64()
		if f.err == nil && (number > max || number <= last) {
			f.err = fmt.Errorf("%w: digest %d does not belong there", ErrMalformed, number)
		}
		if f.err == nil {
			take(number, sum)
		}
		last = number
	}
}
