package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sort"

	"github.com/cespare/xxhash/v2"

	"github.com/heliograph/heliograph"
)

// keepAllBlocks is how many of the newest blocks keep their digests, all of them.
const keepAllBlocks = 64

// firstRev is the first revision that can have records: an empty etcd is at 1.
const firstRev = 2

// recordDigest returns the XXH64 of a record as it stands in a frame of entries:
//
//	key length u8 │ key │ value length u32 BE │ value
//
// For 256-byte values it takes 80 ns, where CRC-64 takes 240 and applying a
// record more than 10,000. Digests of records are added up, modulo 2^64: so the
// digest of a range is the difference of two, and what has been compacted need
// not be read again.
func recordDigest(key, value []byte) uint64 {
	var head [1 + heliograph.DeleteKeyBytes + 4]byte
	head[0] = byte(len(key))
	n := 1 + copy(head[1:], key)
	binary.BigEndian.PutUint32(head[n:], uint32(len(value)))
	var d xxhash.Digest
	d.Reset()
	d.Write(head[:n+4])
	d.Write(value)
	return d.Sum64()
}

func batchDigest(b heliograph.Batch) (sum uint64) {
	for _, r := range b.Records {
		sum += recordDigest(r.Key, r.Value)
	}
	return sum
}

// tally adds up the digests of a history as it goes on.
//
// Invariant: sum is of the revisions [from, at], which lie in one block; from is
// at+1 when there are none.
type tally struct {
	at, from int64
	sum      uint64
	blocks   []heliograph.BlockDigest // whole ones that are kept, ascending
}

// restart makes the tally begin behind at: what was before is not known.
func (t *tally) restart(at int64) { t.at, t.from, t.sum = at, at+1, 0 }

// next goes on to revision at+1, and reports whether a block was completed.
func (t *tally) next() (done heliograph.BlockDigest, ok bool) {
	t.at++
	if t.at%heliograph.DigestBlock != 0 {
		return done, false
	}
	done = heliograph.BlockDigest{Block: t.at/heliograph.DigestBlock - 1, Sum: t.sum}
	ok = wholeFrom(t.from, done.First())
	t.from, t.sum = t.at, 0
	return done, ok
}

// wholeFrom reports whether from includes all records from first on.
func wholeFrom(from, first int64) bool { return from <= max(first, firstRev) }

// record counts one of the records of an ascending history without gaps.
func (t *tally) record(rev int64, sum uint64) {
	if rev != t.at {
		if done, ok := t.next(); ok {
			t.keep(done)
		}
	}
	t.sum += sum
}

// keep adds a block that is newer than all others and returns those that are let
// go for it.
func (t *tally) keep(d heliograph.BlockDigest) (dropped []int64) {
	t.blocks = append(t.blocks, d)
	return t.thin()
}

// thin lets go of old blocks: of those that are 64·2^n to 128·2^n blocks old, the
// multiples of 2^(n+1) stay, which are 32. In all that is some 1,600, however long
// the history. Which ones stay depends on the newest alone, and what is let go
// never belongs to what stays later, so any two replicas keep blocks in common.
func (t *tally) thin() (dropped []int64) {
	if len(t.blocks) == 0 {
		return nil
	}
	newest := t.blocks[len(t.blocks)-1].Block
	kept := t.blocks[:0]
	for _, b := range t.blocks {
		if age := uint64(newest-b.Block) / keepAllBlocks; b.Block%(1<<bits.Len64(age)) == 0 {
			kept = append(kept, b)
		} else {
			dropped = append(dropped, b.Block)
		}
	}
	t.blocks = kept
	return dropped
}

func (t *tally) block(k int64) (sum uint64, ok bool) {
	i := sort.Search(len(t.blocks), func(i int) bool { return t.blocks[i].Block >= k })
	if i == len(t.blocks) || t.blocks[i].Block != k {
		return 0, false
	}
	return t.blocks[i].Sum, true
}

// conflict says that the records of a file are not those that were applied.
type conflict struct {
	first, last int64 // revisions
}

// merge adds what was written down, which reaches further back, to t, which was
// counted from the records that are there.
func (t *tally) merge(old tally) *conflict {
	all := make([]heliograph.BlockDigest, 0, len(t.blocks)+len(old.blocks))
	i := 0
	for _, b := range old.blocks {
		for i < len(t.blocks) && t.blocks[i].Block < b.Block {
			all = append(all, t.blocks[i])
			i++
		}
		if i < len(t.blocks) && t.blocks[i].Block == b.Block {
			if t.blocks[i].Sum != b.Sum {
				return &conflict{max(b.First(), firstRev), b.Last()}
			}
			i++
		}
		all = append(all, b)
	}
	t.blocks = append(all, t.blocks[i:]...)
	t.thin()
	switch {
	case old.at != t.at: // of another moment, or none
	case old.from < t.from:
		t.from, t.sum = old.from, old.sum
	case old.from == t.from && old.sum != t.sum:
		return &conflict{t.from, t.at}
	}
	return nil
}

// Proof returns what the store can show of its history, zero before the first
// snapshot. Of the whole blocks it names the newest, and older ones at distances
// that double, chosen so that a replica far ahead still has some of them.
func (s *Store) Proof() heliograph.Proof {
	c := s.cur.Load()
	if c == nil {
		return heliograph.Proof{}
	}
	t := c.digests.view()
	return heliograph.Proof{Rev: t.at, Blocks: choose(t.blocks), Tails: s.tails(t)}
}

// digestBytes bounds what is read to answer for one digest, or for the tails of a
// proof: a handshake must not take long, however large the values are.
const digestBytes = 8 << 20

// tails returns the digest of the open block, which was counted when its records
// were applied, and those of the last 1, 4, 16, 64, 256 and 1024 revisions as they
// are read back, as far as the history and digestBytes reach.
func (s *Store) tails(t tally) (tails []heliograph.TailDigest) {
	floor, budget := max(s.Floor(), firstRev-1), int64(digestBytes)
	sum, from := uint64(0), t.at+1
	for n := int64(1); n <= heliograph.DigestBlock && from > floor+1; n *= 4 {
		next := max(t.at-n+1, floor+1)
		more, err := s.sum(next, from-1, &budget)
		if err != nil {
			break // too much, or compacted just now: a shorter one has to do
		}
		sum, from = sum+more, next
		tails = append(tails, heliograph.TailDigest{From: from, Sum: sum})
	}
	if t.from <= t.at && !slices.ContainsFunc(tails, func(d heliograph.TailDigest) bool { return d.From == t.from }) {
		tails = append(tails, heliograph.TailDigest{From: t.from, Sum: t.sum})
	}
	slices.SortFunc(tails, func(a, b heliograph.TailDigest) int { return cmp.Compare(a.From, b.From) })
	return tails
}

// Numbers of the blocks that a proof names: the newest proofNewest, and the newest
// multiple of 2^n for each n from proofOldest on.
const (
	proofNewest = 16
	proofOldest = 4
)

func choose(blocks []heliograph.BlockDigest) []heliograph.BlockDigest {
	newest := len(blocks) - proofNewest
	wanted := make(map[int64]bool, heliograph.MaxProofBlocks)
	for n := proofOldest; n < proofOldest+heliograph.MaxProofBlocks-proofNewest; n++ {
		for i := newest - 1; i >= 0; i-- {
			if b := blocks[i].Block; b%(1<<n) == 0 {
				wanted[b] = true
				break
			}
		}
	}
	var out []heliograph.BlockDigest
	for i, b := range blocks {
		if i >= newest || wanted[b.Block] {
			out = append(out, b)
		}
	}
	return out
}

// Digests returns the digests of the whole blocks that are kept, ascending.
func (s *Store) Digests() []heliograph.BlockDigest {
	if c := s.cur.Load(); c != nil {
		return c.digests.view().blocks
	}
	return nil
}

// DigestAt returns the digest of one whole block, false if it is not kept. A block
// is kept although its records have been compacted.
func (s *Store) DigestAt(block int64) (sum uint64, ok bool) {
	c := s.cur.Load()
	if c == nil {
		return 0, false
	}
	c.digests.mu.Lock()
	defer c.digests.mu.Unlock()
	return c.digests.seen.block(block)
}

var (
	errStop    = errors.New("enough")
	errTooMuch = fmt.Errorf("digest of more than %d bytes", digestBytes)
)

// Digest returns the digest of the revisions [from, to], at most
// heliograph.DigestBlock of them. It reads them, or those that follow them in
// their block, whichever is in the history and shorter, and gives up when they are
// more than 8 MiB. The errors are heliograph.ErrCompacted, ErrFutureRevision,
// ErrNotReady and ErrClosed.
func (s *Store) Digest(from, to int64) (uint64, error) {
	return s.digest(from, to, digestBytes)
}

func (s *Store) digest(from, to, budget int64) (uint64, error) {
	from = max(from, firstRev)
	if to < from || to-from >= heliograph.DigestBlock {
		return 0, fmt.Errorf("digest of revisions %d to %d: want 1 to %d of them", from, to, heliograph.DigestBlock)
	}
	c, err := s.acquire()
	if err != nil {
		return 0, err
	}
	defer c.users.Done()
	t := c.digests.view()
	if to > t.at {
		return 0, fmt.Errorf("digest up to revision %d: %w (%d is applied)", to, heliograph.ErrFutureRevision, t.at)
	}
	whole, end, ok := t.span(from, to)
	if ok && (end-to <= to-from || c.floor.Load() >= from) {
		rest, err := s.sum(to+1, end, &budget)
		return whole - rest, err
	}
	return s.sum(from, to, &budget)
}

// span returns the digest of [from, end], where end is the end of the block in
// which to lies, or of the history; false if that is not known.
func (t *tally) span(from, to int64) (sum uint64, end int64, ok bool) {
	k := to / heliograph.DigestBlock
	b := heliograph.BlockDigest{Block: k}
	if k == t.at/heliograph.DigestBlock {
		return t.sum, t.at, from == max(t.from, firstRev)
	}
	sum, ok = t.block(k)
	return sum, b.Last(), ok && from == max(b.First(), firstRev)
}

// sum adds up the records of the revisions [from, to] in the history, and takes
// their bytes off the budget; errTooMuch if that is used up.
func (s *Store) sum(from, to int64, budget *int64) (sum uint64, err error) {
	if from > to {
		return 0, nil
	}
	_, err = s.History(from, math.MaxInt, func(key, value []byte) error {
		if rev := int64(binary.BigEndian.Uint64(key)); rev > to {
			return errStop
		}
		if *budget -= int64(len(key) + len(value)); *budget < 0 {
			return errTooMuch
		}
		sum += recordDigest(key, value)
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return 0, err
	}
	return sum, nil
}

// floorAt returns the digest of what the block of revision rev+1 holds up to rev,
// zero if that cannot be told.
func (s *Store) floorAt(rev int64) tally {
	first := (rev + 1) / heliograph.DigestBlock * heliograph.DigestBlock
	t := tally{at: rev, from: max(first, firstRev)}
	if t.from > rev {
		t.from = rev + 1
		return t
	}
	var err error
	if t.sum, err = s.digest(t.from, rev, math.MaxInt64); err != nil {
		return tally{}
	}
	return t
}
