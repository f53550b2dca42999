//go:build heliograph_drop

package etcd

import "github.com/heliograph/heliograph"

// dropEvery is how many records come for one that is lost.
const dropEvery = 10_000

var sinceDrop int // of the goroutine that encodes

// dropped loses the last record of a batch after every dropEvery records, if the
// batch has others: a revision without any would be missed at once.
func dropped(b heliograph.Batch) heliograph.Batch {
	if sinceDrop += len(b.Records); sinceDrop >= dropEvery && len(b.Records) > 1 {
		sinceDrop = 0
		b.Records = b.Records[:len(b.Records)-1]
	}
	return b
}
