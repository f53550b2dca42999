package session_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/source/session"
)

// kept is a history of which some is known.
type kept struct {
	blocks map[int64]uint64
	ranges map[[2]int64]uint64
}

func (k kept) DigestAt(block int64) (uint64, bool) {
	sum, ok := k.blocks[block]
	return sum, ok
}

func (k kept) Digest(from, to int64) (uint64, error) {
	if sum, ok := k.ranges[[2]int64{from, to}]; ok {
		return sum, nil
	}
	return 0, errors.New("not known")
}

// A mirror at 4500 shows blocks 0 to 3 and the tail, to a source at 6000.
func TestHistoriesAreCompared(t *testing.T) {
	type k = kept
	type p = heliograph.Proof
	for _, tt := range []struct {
		name   string
		change func(*kept, *heliograph.Proof)
		differ string // where it says that they differ; "" if accepted
		proven bool
	}{
		{"equal", func(*k, *p) {}, "", true},
		{"tail differs", func(_ *k, p *p) { p.Tails[0].Sum++ }, "revisions 4096 to 4500", false},
		{"tail not known", func(k *k, _ *p) { k.ranges = nil }, "", true},
		{"only the tail is known", func(k *k, _ *p) { k.blocks = nil }, "", true},
		{"nothing is known", func(k *k, _ *p) { *k = kept{} }, "", false},
		{"nothing is shown", func(_ *k, p *p) { *p = heliograph.Proof{} }, "", false},
		{"a block differs", func(_ *k, p *p) { p.Blocks[2].Sum++ }, "revisions 2048 to 3071", false},
		{"the first differs", func(_ *k, p *p) { p.Blocks[0].Sum++ }, "revisions 2 to 1023", false},
		{"a block differs behind a gap", func(k *k, p *p) { delete(k.blocks, 1); p.Blocks[2].Sum++ }, "revisions 1024 to 3071", false},
		{"only a block that differs is known", func(k *k, p *p) { *k = kept{blocks: map[int64]uint64{3: 1}} }, "revisions 2 to 4095", false},
		{"a tail after unknown blocks", func(k *k, p *p) { k.blocks = nil; p.Tails[0].Sum++ }, "revisions 4096 to 4500", false},
		{"the longer tail is gone", func(k *k, _ *p) { k.ranges = map[[2]int64]uint64{{4400, 4500}: 44} }, "", true},
		{"the shorter tail differs", func(k *k, _ *p) { k.ranges = map[[2]int64]uint64{{4400, 4500}: 45} }, "revisions 4400 to 4500", false},
		{"a tail of one", func(k *k, p *p) { p.Tails[0].From, k.ranges = 4500, map[[2]int64]uint64{{4500, 4500}: 1} }, "revision 4500", false},
		{"a tail too long", func(k *k, p *p) { p.Tails[0] = heliograph.TailDigest{From: 1, Sum: 9} }, "", true},
		{"a tail beyond", func(k *k, p *p) { p.Tails[0] = heliograph.TailDigest{From: 4501, Sum: 9} }, "", true},
		{"a block beyond", func(k *k, p *p) { p.Blocks[3].Block, k.blocks[4] = 4, 77 }, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			history := kept{blocks: map[int64]uint64{0: 10, 1: 11, 2: 12, 3: 13}, ranges: map[[2]int64]uint64{{4096, 4500}: 99}}
			proof := heliograph.Proof{Rev: 4500, Tails: []heliograph.TailDigest{{From: 4096, Sum: 99}, {From: 4400, Sum: 44}}}
			for b := range int64(4) {
				proof.Blocks = append(proof.Blocks, heliograph.BlockDigest{Block: b, Sum: 10 + uint64(b)})
			}
			tt.change(&history, &proof)
			h, n := hello(), node()
			h.LastApplied, h.Proof = 4500, proof
			n.Applied, n.Head, n.History = 6000, 6000, history
			for _, floor := range []int64{40, 5000} { // a snapshot is not sent over a difference, either
				n.Floor = floor
				d := session.Decide(h, peer(heliograph.RoleMirror), n)
				if tt.differ == "" {
					if !d.Accepted() || d.Proven != tt.proven || d.Snapshot != (floor > 4500) {
						t.Errorf("got %+v", d)
					}
					continue
				}
				if d.Code != heliograph.CodeDiverged || !strings.Contains(d.Detail, fmt.Sprintf("records in %s than node self-7:", tt.differ)) ||
					!strings.Contains(d.Detail, "helio resync") {
					t.Errorf("got %s %q, want %s", d.Code, d.Detail, tt.differ)
				}
			}
		})
	}
}

// A mirror that is ahead and of another history is told the truth at once.
func TestAheadAndDifferent(t *testing.T) {
	h, n := hello(), node()
	h.LastApplied, h.Proof = 4500, heliograph.Proof{Blocks: []heliograph.BlockDigest{{Block: 1, Sum: 5}}}
	n.Applied, n.Head, n.Fresh, n.History = 4000, 4000, false, kept{blocks: map[int64]uint64{1: 6}}
	for _, h.Asks = range []bool{false, true} {
		if d := session.Decide(h, peer(heliograph.RoleMirror), n); d.Code != heliograph.CodeDiverged {
			t.Errorf("asks %v: got %+v", h.Asks, d)
		}
	}
}
