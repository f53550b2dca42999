// Package heliograph is the vocabulary of Heliograph, which mirrors an etcd
// cluster to other clusters: names and positions, revisions and their records,
// states and the status that people read, and the errors that travel.
//
// A [Batch] is everything that one revision changed; its [Record] values are
// etcd's own bytes. An upstream delivers batches to a [Replica] in revision
// order and tells a [Reporter] how it fares. This package parses and validates
// and does nothing else; it imports none of the others, so all may import it.
package heliograph
