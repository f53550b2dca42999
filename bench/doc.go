// Package bench measures the whole system beside what people use today, in one
// run on one machine: real etcd, `etcdctl make-mirror` and helio processes.
//
//	go test -run '^$' -bench . -benchtime 1x -timeout 60m ./bench
//
// Each benchmark runs its variants in turn, round after round, so that what the
// machine does meanwhile hits all of them, and prints one Markdown table: the
// median over the rounds, with minimum and maximum. docs/BENCHMARKS.md says what
// the figures mean. A copy that is incomplete or differs fails the benchmark;
// a slow one is only reported.
//
// The environment sets the size: BENCH_KEYS, BENCH_SECONDS, BENCH_ROUNDS and
// BENCH_FSYNC, see [options].
package bench
