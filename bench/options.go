package bench

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// Fixed conditions.
const (
	valueBytes = 256
	writers    = 64
	warmUp     = time.Second           // of load, before the figures count
	probeEvery = 20 * time.Millisecond // under load
	idleEvery  = 10 * time.Millisecond // 100 puts/s, nothing else
	drainWait  = 10 * time.Second      // for what make-mirror still owes
	copyWait   = 30 * time.Minute      // for one first copy
	startWait  = time.Minute           // for a process to do its work at all
	quotaBytes = 8 << 30               // of an etcd, so that no run meets its limit
)

// options are the sizes that the environment sets.
type options struct {
	keys   int           // BENCH_KEYS: keys of the first copy and of the reads; 200,000
	window time.Duration // BENCH_SECONDS: length of a measurement under load; 10
	rounds int           // BENCH_ROUNDS: 3
	// BENCH_FSYNC: 1 lets every etcd wait for its disk. By default none does:
	// etcd is then as fast, and so as sensitive to a busy neighbour, as the
	// processor allows, and make-mirror's destination as well. Helio's nodes
	// always use fsync.
	fsync bool
}

func readOptions(tb testing.TB) options {
	tb.Helper()
	return options{
		keys:   envInt(tb, "BENCH_KEYS", 200_000, 1),
		window: time.Duration(envInt(tb, "BENCH_SECONDS", 10, 1)) * time.Second,
		rounds: envInt(tb, "BENCH_ROUNDS", 3, 1),
		fsync:  envInt(tb, "BENCH_FSYNC", 0, 0) != 0,
	}
}

func envInt(tb testing.TB, name string, value, least int) int {
	tb.Helper()
	s := os.Getenv(name)
	if s == "" {
		return value
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least {
		tb.Fatalf("%s=%q: want a number of at least %d", name, s, least)
	}
	return n
}
