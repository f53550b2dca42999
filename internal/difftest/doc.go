// Package difftest sends the same random requests to a real etcd and to a mirror
// of it, and compares the answers.
//
// [New] gives an etcd a history on which any request finds something: keys made
// again and again, leases, deletes, transactions, the first half compacted. The
// caller sets [Twins.Mirror] to a replica at that revision, and the methods
// CheckRange, CheckTxn and CheckWatch do the rest. Answers must be equal except
// for the header's member id and raft term. Package rapid shrinks what differs.
package difftest
