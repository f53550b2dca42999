package bench

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// cell is one variant in one round. It is the testing.TB of what the variant
// starts, and ends it before the next one begins: processes, clients and files
// of a cell do not outlive it.
type cell struct {
	testing.TB
	ctx      context.Context //nolint:containedctx // stands in for TB.Context
	cancel   context.CancelFunc
	dir      string
	dirs     int
	cleanups []func()
}

// inCell runs f and then what f has handed to Cleanup, last one first, also if f
// fails the benchmark.
func inCell(tb testing.TB, f func(*cell)) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "bench-") // short: a node's socket path has a limit
	if err != nil {
		tb.Fatal(err)
	}
	c := &cell{TB: tb, dir: dir}
	c.ctx, c.cancel = context.WithCancel(tb.Context())
	defer c.end()
	f(c)
}

func (c *cell) end() {
	defer os.RemoveAll(c.dir)
	c.cancel()
	for len(c.cleanups) > 0 {
		last := len(c.cleanups) - 1
		f := c.cleanups[last]
		c.cleanups = c.cleanups[:last]
		f()
	}
}

// Cleanup implements testing.TB for the cell's own end.
func (c *cell) Cleanup(f func()) { c.cleanups = append(c.cleanups, f) }

// Context implements testing.TB; it is cancelled just before the cleanups.
func (c *cell) Context() context.Context { return c.ctx }

// TempDir implements testing.TB; the folder is removed when the cell ends.
func (c *cell) TempDir() string {
	c.Helper()
	c.dirs++
	dir := filepath.Join(c.dir, strconv.Itoa(c.dirs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.Fatal(err)
	}
	return dir
}

// Logf implements testing.TB. What the harness tells is wanted with -v and when
// something has failed; otherwise the tables are the output.
func (c *cell) Logf(format string, args ...any) {
	c.Helper()
	if testing.Verbose() || c.Failed() {
		c.TB.Logf(format, args...)
	}
}

// hold returns after d; the length of a load, not a wait for something.
func (c *cell) hold(d time.Duration) {
	select {
	case <-c.ctx.Done():
	case <-time.After(d):
	}
}

// until asks ok at that pace and reports whether it was true within limit.
func (c *cell) until(limit, every time.Duration, ok func() bool) bool {
	deadline := time.Now().Add(limit)
	for c.ctx.Err() == nil {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		c.hold(every)
	}
	return false
}
