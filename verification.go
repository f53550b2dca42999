package heliograph

import "time"

// VerifyResult is how a verification ended.
type VerifyResult string

// The results. What could not be checked is Unknown, never Equal.
const (
	VerifyEqual   VerifyResult = "equal"
	VerifyUnequal VerifyResult = "unequal"
	VerifyUnknown VerifyResult = "unknown"
)

// Verification is a comparison of etcd's HashKV with those of the nodes below it,
// all at one revision and one compaction revision, in the form in which
// `helio verify -o json` prints it.
type Verification struct {
	Result          VerifyResult `json:"result"`
	Why             string       `json:"why"` // empty only when equal
	Revision        int64        `json:"revision"`
	CompactRevision int64        `json:"compact_revision"` // 0 if never compacted
	EtcdHash        uint32       `json:"etcd_hash"`        // of the origin's etcd
	EtcdEndpoint    string       `json:"etcd_endpoint"`    // the member that was asked
	Hash            uint32       `json:"hash"`             // of this node; 0 if unknown
	At              time.Time    `json:"at"`               // when it ended
	TookMS          int64        `json:"took_ms"`
}

// Unverified is a verification that could not be done, and why.
func Unverified(why string) Verification {
	return Verification{Result: VerifyUnknown, Why: why}
}
