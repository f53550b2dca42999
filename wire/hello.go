package wire

import (
	"math"

	"github.com/tinylib/msgp/msgp"

	"github.com/heliograph/heliograph"
)

// NoSnapshot is a HelloAck's SnapshotLSN when the stream follows without one.
const NoSnapshot = 1<<64 - 1

// maxText is the longest name or id in a control frame, in bytes. It is wider
// than what this version accepts, so that a refusal can quote it.
const maxText = 256

// Hello is a mirror's first frame on the first stream. The first four fields
// are always sent, in this order; the further ones only where they are set.
type Hello struct {
	SourceCluster    string
	SourceDatabaseID string
	LastAppliedLSN   int64 // 0 asks for a snapshot
	ProtocolVersion  uint16

	NodeID string // identifies the mirror's data directory; "" if unknown
	Origin string // heliograph.Origin of what it holds; "" if nothing
	// Features names the frames beyond the first ones that the mirror knows:
	// the source sends no others.
	Features []string
	// Asks says that the mirror follows another node of the same cluster, and only
	// wants to ask over this connection.
	Asks bool

	// What the mirror shows of the history that it holds, see heliograph.Proof.
	Digests []heliograph.BlockDigest // ascending, at most heliograph.MaxProofBlocks
	Tails   []heliograph.TailDigest  // ascending, at most heliograph.MaxProofTails
}

// FeatureLeases is the feature of a mirror that knows the leases frame.
const FeatureLeases = "leases"

// Limits of a hello's features.
const (
	maxFeatures    = 16
	maxFeatureText = 32 // bytes
)

// AppendFrame implements [Message].
func (h Hello) AppendFrame(dst []byte) []byte {
	n := uint32(4)
	for _, s := range []string{h.NodeID, h.Origin} {
		if s != "" {
			n++
		}
	}
	features := h.Features[:min(len(h.Features), maxFeatures)]
	if len(features) > 0 {
		n++
	}
	if h.Asks {
		n++
	}
	digests := h.Digests[:min(len(h.Digests), heliograph.MaxProofBlocks)]
	if len(digests) > 0 {
		n++
	}
	tails := h.Tails[:min(len(h.Tails), heliograph.MaxProofTails)]
	if len(tails) > 0 {
		n++
	}
	b, start := beginFrame(dst, TypeHello)
	b = msgp.AppendMapHeader(b, n)
	b = appendText(b, "source_cluster", h.SourceCluster)
	b = appendText(b, "source_database_id", h.SourceDatabaseID)
	b = appendRev(b, "last_applied_lsn", h.LastAppliedLSN)
	b = msgp.AppendUint16(msgp.AppendString(b, "protocol_version"), h.ProtocolVersion)
	if h.NodeID != "" {
		b = appendText(b, "node_id", h.NodeID)
	}
	if h.Origin != "" {
		b = appendText(b, "origin", h.Origin)
	}
	if len(features) > 0 {
		b = appendFeatures(b, features)
	}
	if h.Asks {
		b = msgp.AppendBool(msgp.AppendString(b, "asks"), true)
	}
	if len(digests) > 0 {
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "digests"), uint32(2*len(digests)))
		for _, d := range digests {
			b = msgp.AppendUint64(msgp.AppendUint64(b, uint64(d.Block)), d.Sum)
		}
	}
	if len(tails) > 0 {
		b = msgp.AppendArrayHeader(msgp.AppendString(b, "tails"), uint32(2*len(tails)))
		for _, d := range tails {
			b = msgp.AppendUint64(msgp.AppendUint64(b, uint64(d.From)), d.Sum)
		}
	}
	return endFrame(b, start)
}

// DecodeHello reads a hello's payload. It retains nothing of it.
func DecodeHello(payload []byte) (Hello, error) {
	var h Hello
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "source_cluster":
			h.SourceCluster = f.str(maxText)
		case "source_database_id":
			h.SourceDatabaseID = f.str(maxText)
		case "last_applied_lsn":
			h.LastAppliedLSN = f.rev()
		case "protocol_version":
			h.ProtocolVersion = f.u16()
		case "node_id":
			h.NodeID = f.str(maxText)
		case "origin":
			h.Origin = f.str(maxText)
		case "features":
			h.Features = f.strs(maxFeatures, maxFeatureText)
		case "asks":
			h.Asks = f.boolean()
		case "digests":
			f.digests(heliograph.MaxProofBlocks, math.MaxInt64/heliograph.DigestBlock-1, func(block int64, sum uint64) {
				h.Digests = append(h.Digests, heliograph.BlockDigest{Block: block, Sum: sum})
			})
		case "tails":
			f.digests(heliograph.MaxProofTails, math.MaxInt64, func(from int64, sum uint64) {
				h.Tails = append(h.Tails, heliograph.TailDigest{From: from, Sum: sum})
			})
		default:
			f.skip()
		}
	}
	return h, f.done(TypeHello, "source_cluster", "source_database_id", "last_applied_lsn", "protocol_version")
}

// HelloAck is the source's answer to a hello. The first six fields are always
// sent, in this order; the further ones only where they are set.
type HelloAck struct {
	Accepted           bool
	ErrorCode          heliograph.Code
	ErrorDetail        string
	SourceClusterID    string
	SnapshotLSN        uint64 // the revision of the snapshot that follows, or NoSnapshot
	SnapshotBytesTotal uint64 // the snapshot's size; 0 without one

	HeadLSN    int64 // the source's newest applied revision
	CompactLSN int64 // its compaction revision
	// Origin is the heliograph.Origin of what it holds. A refusal has it only if
	// the mirror's is not known there.
	Origin      string
	NodeID      string   // identifies the source's data directory
	Path        []string // node ids from the origin's source node down to this node
	HeartbeatMS int64    // how often the source sends heartbeats; 0: not said
	// Features names the frames beyond the first ones that the source answers.
	Features []string
	// Forks lead from the history that the mirror said it holds to Origin, oldest
	// first; none if they are the same. At most MaxAckForks.
	Forks []heliograph.Fork
}

// AppendFrame implements [Message].
func (a HelloAck) AppendFrame(dst []byte) []byte {
	n := uint32(6)
	for _, set := range []bool{a.HeadLSN != 0, a.CompactLSN != 0, a.Origin != "", a.NodeID != "", len(a.Path) > 0, a.HeartbeatMS != 0} {
		if set {
			n++
		}
	}
	features := a.Features[:min(len(a.Features), maxFeatures)]
	if len(features) > 0 {
		n++
	}
	forks := a.Forks[:min(len(a.Forks), MaxAckForks)]
	if len(forks) > 0 {
		n++
	}
	b, start := beginFrame(dst, TypeHelloAck)
	b = msgp.AppendMapHeader(b, n)
	b = msgp.AppendBool(msgp.AppendString(b, "accepted"), a.Accepted)
	b = msgp.AppendUint8(msgp.AppendString(b, "error_code"), uint8(a.ErrorCode))
	b = msgp.AppendString(msgp.AppendString(b, "error_detail"), shorten(a.ErrorDetail, MaxDetailBytes))
	b = appendText(b, "source_cluster_id", a.SourceClusterID)
	b = msgp.AppendUint64(msgp.AppendString(b, "snapshot_lsn"), a.SnapshotLSN)
	b = msgp.AppendUint64(msgp.AppendString(b, "snapshot_bytes_total"), a.SnapshotBytesTotal)
	if a.HeadLSN != 0 {
		b = appendRev(b, "head_lsn", a.HeadLSN)
	}
	if a.CompactLSN != 0 {
		b = appendRev(b, "compact_lsn", a.CompactLSN)
	}
	if a.Origin != "" {
		b = appendText(b, "origin", a.Origin)
	}
	if a.NodeID != "" {
		b = appendText(b, "node_id", a.NodeID)
	}
	if len(a.Path) > 0 {
		b = appendPath(b, a.Path)
	}
	if a.HeartbeatMS != 0 {
		b = appendRev(b, "heartbeat_ms", a.HeartbeatMS)
	}
	if len(features) > 0 {
		b = appendFeatures(b, features)
	}
	if len(forks) > 0 {
		b = appendForks(b, forks)
	}
	return endFrame(b, start)
}

// DecodeHelloAck reads an ack's payload. It retains nothing of it.
func DecodeHelloAck(payload []byte) (HelloAck, error) {
	var a HelloAck
	f := readFields(payload)
	for key, ok := f.next(); ok; key, ok = f.next() {
		switch key {
		case "accepted":
			a.Accepted = f.boolean()
		case "error_code":
			a.ErrorCode = heliograph.Code(f.u8())
		case "error_detail":
			a.ErrorDetail = f.str(MaxDetailBytes)
		case "source_cluster_id":
			a.SourceClusterID = f.str(maxText)
		case "snapshot_lsn":
			a.SnapshotLSN = f.u64()
		case "snapshot_bytes_total":
			a.SnapshotBytesTotal = f.u64()
		case "head_lsn":
			a.HeadLSN = f.rev()
		case "compact_lsn":
			a.CompactLSN = f.rev()
		case "origin":
			a.Origin = f.str(maxText)
		case "node_id":
			a.NodeID = f.str(maxText)
		case "path":
			a.Path = f.strs(MaxPath, maxPathText)
		case "heartbeat_ms":
			a.HeartbeatMS = f.rev()
		case "features":
			a.Features = f.strs(maxFeatures, maxFeatureText)
		case "forks":
			a.Forks = f.forks()
		default:
			f.skip()
		}
	}
	return a, f.done(TypeHelloAck, "accepted", "error_code", "error_detail", "source_cluster_id", "snapshot_lsn", "snapshot_bytes_total")
}

// maxPathText is the longest node id in a path, in bytes: a full path must fit
// into a control frame beside everything else.
const maxPathText = 64

func appendText(b []byte, key, s string) []byte {
	return msgp.AppendString(msgp.AppendString(b, key), cut(s, maxText))
}

func appendRev(b []byte, key string, rev int64) []byte {
	return msgp.AppendUint64(msgp.AppendString(b, key), uint64(rev))
}

func appendFeatures(b []byte, features []string) []byte {
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "features"), uint32(len(features)))
	for _, s := range features {
		b = msgp.AppendString(b, cut(s, maxFeatureText))
	}
	return b
}

func appendPath(b []byte, path []string) []byte {
	path = path[:min(len(path), MaxPath)]
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "path"), uint32(len(path)))
	for _, id := range path {
		b = msgp.AppendString(b, cut(id, maxPathText))
	}
	return b
}
