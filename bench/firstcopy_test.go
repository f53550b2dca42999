package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph/internal/etcdtest"
)

// The rows of the first copy.
var (
	copySeconds = row{"time until the copy is complete, s", 2}
	copyRate    = row{"keys/s", 0}
	copyRatio   = row{"times as fast as make-mirror in the same round", 1}
)

func firstCopyTable() *table {
	return newTable("First copy", []string{withMakeMirror, withHelio},
		[]row{copySeconds, copyRate, copyRatio, etcdCPU, copierPeak, copierCPU, copyPeak, copyCPU})
}

// BenchmarkFirstCopy copies an etcd full of keys with make-mirror to an empty
// etcd, and with a fresh source node to a fresh mirror. Time begins with the
// start of etcdctl, or of both nodes, and ends when all keys are there, or when the
// mirror says that it follows at etcd's revision. That the copy is equal is
// checked outside of the time.
func BenchmarkFirstCopy(b *testing.B) {
	o := readOptions(b)
	t := firstCopyTable()
	facts := conditions(b, o)
	inCell(b, func(outer *cell) {
		etcd := startEtcd(outer, o)
		revision := fill(outer, etcd.Client(outer), o.keys)
		copied := func(c *cell, column string, r *replica) {
			before := usageOf(c, etcd.Member(0).PID())
			took := firstCopy(c, r, revision)
			t.add(copySeconds, column, took.Seconds())
			t.add(copyRate, column, float64(o.keys)/took.Seconds())
			t.add(etcdCPU, column, (usageOf(c, etcd.Member(0).PID()).cpu - before.cpu).Seconds())
			t.addUsage(column, usage{}, usageOf(c, r.copier.PID()), copierPeak, copierCPU)
			t.addUsage(column, usage{}, usageOf(c, r.copy.PID()), copyPeak, copyCPU)
			r.prove(revision)
		}
		rounds(b, o, []variant{
			{withMakeMirror, func(c *cell) { copied(c, withMakeMirror, newMakeMirror(c, etcd, o)) }},
			{withHelio, func(c *cell) { copied(c, withHelio, newHelio(c, etcd)) }},
		})
	})
	t.addRatios(copyRatio, withHelio, copyRate, withHelio, withMakeMirror, 1)
	t.note("Equal, checked after each copy: keys and values of make-mirror's; HashKV of both helio nodes.")
	show(b, facts, t)
	b.ReportMetric(t.get(copySeconds, withMakeMirror).median(), "make-mirror-s")
	b.ReportMetric(t.get(copySeconds, withHelio).median(), "helio-s")
	b.ReportMetric(t.get(copyRatio, withHelio).median(), "times-as-fast")
}

// firstCopy returns how long it took from the start until the copy is complete.
func firstCopy(c *cell, r *replica, revision int64) time.Duration {
	c.Helper()
	start := time.Now()
	r.start()
	if !c.until(copyWait, 5*time.Millisecond, func() bool { return r.complete(revision) }) {
		c.Fatalf("the copy is not complete after %s", copyWait)
	}
	return time.Since(start)
}

// fillKey is the i-th key of fill.
func fillKey(i int) string { return fmt.Sprintf("/registry/pods/default/%08d", i) }

// fill puts that many keys, one per revision, with values that do not compress,
// and returns etcd's revision.
func fill(c *cell, client *clientv3.Client, keys int) int64 {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, copyWait)
	defer cancel()
	puts, ctx := errgroup.WithContext(ctx)
	for w := range writers {
		puts.Go(func() error {
			rng := rand.NewChaCha8([32]byte{byte(w)})
			value := make([]byte, valueBytes)
			for i := w; i < keys; i += writers {
				if _, err := rng.Read(value); err != nil {
					return err
				}
				if _, err := client.Put(ctx, fillKey(i), string(value)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := puts.Wait(); err != nil {
		c.Fatalf("fill etcd: %v", err)
	}
	revision, err := etcdtest.Revision(c.ctx, client)
	if err != nil {
		c.Fatal(err)
	}
	if revision != int64(keys)+1 {
		c.Fatalf("etcd is at revision %d after %d puts", revision, keys)
	}
	return revision
}
