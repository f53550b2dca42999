package store

import "github.com/heliograph/heliograph"

// Tally shows which blocks a store keeps.
type Tally struct{ t tally }

// Keep adds a block.
func (t *Tally) Keep(block int64) { t.t.keep(heliograph.BlockDigest{Block: block}) }

// Blocks returns those that are kept.
func (t *Tally) Blocks() (out []int64) {
	for _, b := range t.t.blocks {
		out = append(out, b.Block)
	}
	return out
}

// Choose returns the blocks that a proof names of those that are kept.
func Choose(kept []int64) (out []int64) {
	var blocks []heliograph.BlockDigest
	for _, b := range kept {
		blocks = append(blocks, heliograph.BlockDigest{Block: b})
	}
	for _, b := range choose(blocks) {
		out = append(out, b.Block)
	}
	return out
}
