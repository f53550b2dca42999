package etcdtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// LoadOptions say what a load writes. The zero value puts 256-byte values to
// 10,000 keys from 64 workers.
type LoadOptions struct {
	Workers   int    // zero means 64
	Keys      int    // number of different keys; zero means 10,000
	ValueSize int    // bytes; zero means 256
	Prefix    string // of every key; empty means "load/"
	Seed      uint64 // the same seed makes the same choices
	Deletes   bool   // one write in 8 deletes a key
	Txns      bool   // one write in 8 is a transaction of up to 16 puts and deletes
	Leases    bool   // one put in 8 has a lease; a lease is revoked now and then
}

// mixed is what [Fill] writes.
var mixed = LoadOptions{Prefix: "fill/", Deletes: true, Txns: true, Leases: true}

// leaseTTL is long enough for no lease to expire by itself.
const leaseTTL = 3600 // seconds

// Load is a writer at full speed.
type Load struct {
	cancel  context.CancelFunc
	workers sync.WaitGroup
	written atomic.Int64
	failed  atomic.Int64
}

// StartLoad writes until [Load.Stop], which the end of the test also calls.
// Writes that fail, such as those to a member that was killed, are counted and
// the load goes on.
func StartLoad(tb testing.TB, client *clientv3.Client, opts LoadOptions) *Load {
	tb.Helper()
	opts = opts.resolve()
	tb.Logf("load: %+v", opts)
	ctx, cancel := context.WithCancel(tb.Context())
	l := &Load{cancel: cancel}
	for i := range opts.Workers {
		w := newWriter(client, opts, uint64(i))
		l.workers.Go(func() {
			for ctx.Err() == nil {
				n, err := w.write(ctx)
				if err != nil {
					l.failed.Add(1)
				}
				l.written.Add(n)
			}
		})
	}
	tb.Cleanup(l.Stop)
	return l
}

// Stop ends the load and waits for its workers. A second call is harmless.
func (l *Load) Stop() {
	l.cancel()
	l.workers.Wait()
}

// Written returns how many revisions etcd has acknowledged. The cluster may
// have made a few more, whose answers were lost.
func (l *Load) Written() int64 { return l.written.Load() }

// Failed returns how many writes have failed, those cut short by Stop included.
func (l *Load) Failed() int64 { return l.failed.Load() }

// Fill makes at least n revisions of mixed history, concurrently: puts, deletes,
// transactions of several operations, leases granted and revoked. It returns
// the cluster's revision afterwards. Any failure fails the test.
func Fill(tb testing.TB, client *clientv3.Client, n int) int64 {
	tb.Helper()
	opts := mixed
	opts.Keys = max(100, n/4)
	opts = opts.resolve()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute+time.Duration(n)*time.Millisecond)
	defer cancel()
	var (
		left    atomic.Int64
		workers sync.WaitGroup
		once    sync.Once
		failure error
	)
	left.Store(int64(n))
	for i := range opts.Workers {
		w := newWriter(client, opts, uint64(i))
		workers.Go(func() {
			for {
				if left.Add(-1) < 0 {
					left.Add(1) // the others may have to give theirs back
					return
				}
				made, err := w.write(ctx)
				if err != nil {
					once.Do(func() { failure = err; cancel() })
					return
				}
				left.Add(1 - made) // a delete of nothing makes no revision
			}
		})
	}
	workers.Wait()
	if failure != nil {
		tb.Fatalf("fill: %v", failure)
	}
	rev, err := Revision(ctx, client)
	if err != nil {
		tb.Fatalf("fill: %v", err)
	}
	return rev
}

func (o LoadOptions) resolve() LoadOptions {
	if o.Workers == 0 {
		o.Workers = 64
	}
	if o.Keys == 0 {
		o.Keys = 10_000
	}
	if o.ValueSize == 0 {
		o.ValueSize = 256
	}
	if o.Prefix == "" {
		o.Prefix = "load/"
	}
	return o
}

// writer makes one worker's choices.
type writer struct {
	client *clientv3.Client
	opts   LoadOptions
	rng    *rand.Rand
	lease  clientv3.LeaseID // 0 until the first is granted
	used   int              // puts with the lease
}

func newWriter(client *clientv3.Client, opts LoadOptions, worker uint64) *writer {
	return &writer{client: client, opts: opts, rng: rand.New(rand.NewPCG(opts.Seed, worker))}
}

// write makes one request and returns how many revisions it made.
func (w *writer) write(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	switch choice := w.rng.IntN(8); {
	case choice == 0 && w.opts.Deletes:
		resp, err := w.client.Delete(ctx, w.key())
		if err != nil || resp.Deleted == 0 {
			return 0, err
		}
		return 1, nil
	case choice == 1 && w.opts.Txns:
		_, err := w.client.Txn(ctx).Then(w.ops()...).Commit()
		return made(err)
	case choice == 2 && w.opts.Leases:
		return w.putLeased(ctx)
	default:
		_, err := w.client.Put(ctx, w.key(), w.value())
		return made(err)
	}
}

func made(err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return 1, nil
}

// putLeased puts a key with the worker's lease. A lease that has been used
// enough is revoked instead, which deletes its keys in one revision.
func (w *writer) putLeased(ctx context.Context) (int64, error) {
	const usesPerLease = 8
	if w.used >= usesPerLease {
		_, err := w.client.Revoke(ctx, w.lease)
		w.lease, w.used = 0, 0
		// Its keys may all have been overwritten: then no revision is made.
		return 0, err
	}
	if w.lease == 0 {
		lease, err := w.client.Grant(ctx, leaseTTL)
		if err != nil {
			return 0, err
		}
		w.lease = lease.ID
	}
	w.used++
	_, err := w.client.Put(ctx, w.key(), w.value(), clientv3.WithLease(w.lease))
	return made(err)
}

// ops returns puts and deletes of different keys, as one transaction allows. At
// least one is a put, so that it makes a revision.
func (w *writer) ops() []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpPut(w.opts.Prefix+"txn", w.value())}
	seen := make(map[string]bool)
	for range w.rng.IntN(16) {
		key := w.key()
		if seen[key] {
			continue
		}
		seen[key] = true
		if w.rng.IntN(4) == 0 {
			ops = append(ops, clientv3.OpDelete(key))
		} else {
			ops = append(ops, clientv3.OpPut(key, w.value()))
		}
	}
	return ops
}

func (w *writer) key() string {
	return fmt.Sprintf("%s%08d", w.opts.Prefix, w.rng.IntN(w.opts.Keys))
}

func (w *writer) value() string {
	b := make([]byte, w.opts.ValueSize)
	for i := range b {
		b[i] = byte('a' + w.rng.IntN(26))
	}
	return string(b)
}
