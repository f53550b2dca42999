package wire

import (
	"github.com/tinylib/msgp/msgp"

	"github.com/heliograph/heliograph"
)

// maxWhyBytes is the longest reason in a heartbeat.
const maxWhyBytes = 256

// Heartbeat says that its sender is alive and where it stands. Both sides send
// one every half second.
type Heartbeat struct {
	HeadLSN    int64 // the sender's newest applied revision
	CompactLSN int64 // the sender's compaction revision

	// UpstreamLSN is the newest revision that the sender's own upstream is
	// known to have; 0 if none is known. It lets the end of a chain see how
	// far behind the origin it is.
	UpstreamLSN int64
	// StalenessMS is how old the sender's data may be, in milliseconds: the
	// time since it last knew that it had everything the origin had. -1 if it
	// cannot tell.
	StalenessMS int64
	Why         string   // why the sender does not follow its own upstream; "" if it does
	Path        []string // as in HelloAck; from a source only
	// UnheardMS is for how long the source has heard nothing from this mirror,
	// in milliseconds of its own clock; 0 if it does not say.
	UnheardMS int64

	// What the sender knows of the access control of the origin: whether it is
	// on, and the revision of its users and roles. Both are zero unless
	// AuthKnown is set. From a source only.
	AuthKnown    bool
	AuthEnabled  bool
	AuthRevision uint64
}

// AppendFrame implements [Message].
func (h Heartbeat) AppendFrame(dst []byte) []byte {
	n := uint32(2)
	for _, set := range []bool{h.UpstreamLSN != 0, h.StalenessMS >= 0, h.Why != "", len(h.Path) > 0, h.UnheardMS != 0, h.AuthKnown, h.AuthKnown} {
		if set {
			n++
		}
	}
	b, start := beginFrame(dst, TypeHeartbeat)
	b = msgp.AppendMapHeader(b, n)
	b = appendRev(b, "head_lsn", h.HeadLSN)
	b = appendRev(b, "compact_lsn", h.CompactLSN)
	if h.UpstreamLSN != 0 {
		b = appendRev(b, "upstream_lsn", h.UpstreamLSN)
	}
	if h.StalenessMS >= 0 {
		b = appendRev(b, "staleness_ms", h.StalenessMS)
	}
	if h.Why != "" {
		b = msgp.AppendString(msgp.AppendString(b, "why"), shorten(h.Why, maxWhyBytes))
	}
	if len(h.Path) > 0 {
		b = appendPath(b, h.Path)
	}
	if h.UnheardMS != 0 {
		b = appendRev(b, "unheard_ms", h.UnheardMS)
	}
	if h.AuthKnown {
		b = msgp.AppendBool(msgp.AppendString(b, "auth_enabled"), h.AuthEnabled)
		b = msgp.AppendUint64(msgp.AppendString(b, "auth_revision"), h.AuthRevision)
	}
	return endFrame(b, start)
}

// DecodeHeartbeat reads a heartbeat's payload. It retains nothing of it.
func DecodeHeartbeat(payload []byte) (Heartbeat, error) {
	h := Heartbeat{StalenessMS: -1}
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "head_lsn":
			h.HeadLSN = f.rev()
		case "compact_lsn":
			h.CompactLSN = f.rev()
		case "upstream_lsn":
			h.UpstreamLSN = f.rev()
		case "staleness_ms":
			h.StalenessMS = f.rev()
		case "why":
			h.Why = f.str(maxWhyBytes)
		case "path":
			h.Path = f.strs(MaxPath, maxPathText)
		case "unheard_ms":
			h.UnheardMS = f.rev()
		case "auth_enabled":
			h.AuthKnown, h.AuthEnabled = true, f.boolean()
		case "auth_revision":
			h.AuthRevision = f.u64()
		default:
			f.skip()
		}
	}
	if !h.AuthKnown {
		h.AuthRevision = 0
	}
	return h, f.done(TypeHeartbeat, "head_lsn", "compact_lsn")
}

// Ack says how far the mirror has come.
type Ack struct {
	AppliedLSN int64 // visible to the mirror's readers
	DurableLSN int64 // survives a crash of the mirror; at most AppliedLSN
}

// AppendFrame implements [Message].
func (a Ack) AppendFrame(dst []byte) []byte {
	b, start := beginFrame(dst, TypeAck)
	b = msgp.AppendMapHeader(b, 2)
	b = appendRev(b, "applied_lsn", a.AppliedLSN)
	b = appendRev(b, "durable_lsn", a.DurableLSN)
	return endFrame(b, start)
}

// DecodeAck reads an ack's payload.
func DecodeAck(payload []byte) (Ack, error) {
	var a Ack
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "applied_lsn":
			a.AppliedLSN = f.rev()
		case "durable_lsn":
			a.DurableLSN = f.rev()
		default:
			f.skip()
		}
	}
	return a, f.done(TypeAck, "applied_lsn", "durable_lsn")
}

// ReadIndex asks for the newest revision of the etcd at the head of the chain.
type ReadIndex struct {
	ID     uint64 // chosen by the mirror, quoted in the reply
	WaitMS uint64 // how long the mirror waits for the reply; 0 if it does not say
}

// AppendFrame implements [Message].
func (r ReadIndex) AppendFrame(dst []byte) []byte {
	n := uint32(1)
	if r.WaitMS > 0 {
		n++
	}
	b, start := beginFrame(dst, TypeReadIndex)
	b = msgp.AppendMapHeader(b, n)
	b = msgp.AppendUint64(msgp.AppendString(b, "id"), r.ID)
	if r.WaitMS > 0 {
		b = msgp.AppendUint64(msgp.AppendString(b, "wait_ms"), r.WaitMS)
	}
	return endFrame(b, start)
}

// DecodeReadIndex reads a read-index request's payload.
func DecodeReadIndex(payload []byte) (ReadIndex, error) {
	var r ReadIndex
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "id":
			r.ID = f.u64()
		case "wait_ms":
			r.WaitMS = f.u64()
		default:
			f.skip()
		}
	}
	return r, f.done(TypeReadIndex, "id")
}

// ReadIndexReply answers a ReadIndex.
type ReadIndexReply struct {
	ID          uint64
	LSN         int64  // the revision; 0 if ErrorDetail is set
	ErrorDetail string // why it could not be learned; "" if it was
	Unanswered  bool   // because nothing has answered: see heliograph.UnansweredError
}

// AppendFrame implements [Message].
func (r ReadIndexReply) AppendFrame(dst []byte) []byte {
	n := uint32(3)
	if r.Unanswered {
		n++
	}
	b, start := beginFrame(dst, TypeReadIndexReply)
	b = msgp.AppendMapHeader(b, n)
	b = msgp.AppendUint64(msgp.AppendString(b, "id"), r.ID)
	b = appendRev(b, "lsn", r.LSN)
	b = msgp.AppendString(msgp.AppendString(b, "error_detail"), shorten(r.ErrorDetail, MaxDetailBytes))
	if r.Unanswered {
		b = msgp.AppendBool(msgp.AppendString(b, "unanswered"), true)
	}
	return endFrame(b, start)
}

// DecodeReadIndexReply reads a read-index reply's payload.
func DecodeReadIndexReply(payload []byte) (ReadIndexReply, error) {
	var r ReadIndexReply
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "id":
			r.ID = f.u64()
		case "lsn":
			r.LSN = f.rev()
		case "error_detail":
			r.ErrorDetail = f.str(MaxDetailBytes)
		case "unanswered":
			r.Unanswered = f.boolean()
		default:
			f.skip()
		}
	}
	return r, f.done(TypeReadIndexReply, "id", "lsn", "error_detail")
}

// Goodbye is the last frame of a side that ends the connection on purpose.
type Goodbye struct {
	Code   heliograph.Code
	Detail string
}

// AppendFrame implements [Message].
func (g Goodbye) AppendFrame(dst []byte) []byte {
	b, start := beginFrame(dst, TypeGoodbye)
	b = msgp.AppendMapHeader(b, 2)
	b = msgp.AppendUint8(msgp.AppendString(b, "code"), uint8(g.Code))
	b = msgp.AppendString(msgp.AppendString(b, "detail"), shorten(g.Detail, MaxDetailBytes))
	return endFrame(b, start)
}

// DecodeGoodbye reads a goodbye's payload. It retains nothing of it.
func DecodeGoodbye(payload []byte) (Goodbye, error) {
	var g Goodbye
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "code":
			g.Code = heliograph.Code(f.u8())
		case "detail":
			g.Detail = f.str(MaxDetailBytes)
		default:
			f.skip()
		}
	}
	return g, f.done(TypeGoodbye, "code", "detail")
}
