package heliograph

// DigestBlock is how many revisions a block of a history has. Block k holds the
// revisions from k*DigestBlock up to, not including, (k+1)*DigestBlock.
const DigestBlock = 1024

// Limits of a [Proof].
const (
	MaxProofBlocks = 48
	MaxProofTails  = 8
)

// BlockDigest is the digest of one whole block of a history.
type BlockDigest struct {
	Block int64
	Sum   uint64
}

// First returns the first revision of the block.
func (d BlockDigest) First() int64 { return d.Block * DigestBlock }

// Last returns the last revision of the block.
func (d BlockDigest) Last() int64 { return d.First() + DigestBlock - 1 }

// TailDigest is the digest of the last revisions of a history, from From on.
type TailDigest struct {
	From int64
	Sum  uint64
}

// Proof is what a replica shows of the history that it holds, so that another can
// tell whether it is the same. The digest of a range of revisions is the sum
// modulo 2^64 of the XXH64 of each of its records, in the form in which records
// stand in a frame of entries. It does not depend on where a replica began, nor
// on what has been compacted since.
type Proof struct {
	Rev    int64         // the replica's revision
	Blocks []BlockDigest // whole blocks, ascending, at most MaxProofBlocks
	// Tails end at Rev, hold at most DigestBlock revisions each, and begin later
	// and later, so that one can be compared whatever the other side has
	// compacted; at most MaxProofTails.
	Tails []TailDigest
}
