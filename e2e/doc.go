// Package e2e holds the tests of the whole system: real etcd, real helio
// processes, real QUIC, real files. The witness of exactness is etcd's HashKV at
// the same revision and compaction revision.
package e2e
