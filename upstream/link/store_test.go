package link_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
	"github.com/heliograph/heliograph/wire"
)

// truth is an etcd's storage.
type truth struct {
	be backend.Backend
	kv mvcc.WatchableKV
	mu sync.Mutex // one writer, and nobody reads half of a revision
}

func newTruth(t *testing.T) *truth {
	t.Helper()
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path = filepath.Join(t.TempDir(), "truth.db")
	cfg.UnsafeNoFsync = true
	be := backend.New(cfg)
	tx := be.BatchTx()
	tx.LockOutsideApply()
	for _, b := range schema.AllBuckets {
		tx.UnsafeCreateBucket(b)
	}
	tx.Unlock()
	tr := &truth{be: be, kv: mvcc.New(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})}
	t.Cleanup(func() {
		if err := errors.Join(tr.kv.Close(), tr.be.Close()); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// write makes n revisions: puts of some kilobytes, deletes, and transactions.
func (tr *truth) write(n int) {
	for i := range n {
		tr.mu.Lock()
		tx := tr.kv.Write(traceutil.TODO())
		name := func(k int) []byte { return fmt.Appendf(nil, "key-%02d", k%40) }
		tx.Put(name(i), bytes.Repeat([]byte{byte(i)}, 2000), 0)
		if i%5 == 0 {
			tx.Put(name(i+1), []byte("second"), 0)
			tx.DeleteRange(name(i+2), nil)
		}
		tx.End()
		tr.mu.Unlock()
	}
}

// snapshot copies the file; its last revision comes with it.
func (tr *truth) snapshot(t *testing.T) (int64, []byte) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	snap := tr.be.Snapshot()
	var buf bytes.Buffer
	_, err := snap.WriteTo(&buf)
	if err := errors.Join(err, snap.Close()); err != nil {
		t.Error(err)
	}
	return tr.kv.Rev(), buf.Bytes()
}

// frame is the revisions from one to the newest, at most 20 of them.
func (tr *truth) frame(t *testing.T, from int64) (frame []byte, next int64) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	head := tr.kv.Rev()
	next = min(head+1, from+20)
	if next == from {
		return nil, from
	}
	rtx := tr.be.ReadTx()
	rtx.RLock()
	defer rtx.RUnlock()
	keys, values := rtx.UnsafeRange(schema.Key, key(from, 0), key(next, 0), math.MaxInt64)
	var e wire.EntriesEncoder
	var z wire.Compressor
	for i := range keys {
		if err := e.Add(keys[i], values[i]); err != nil {
			t.Error(err)
		}
	}
	return e.AppendFrame(nil, head, false, &z), next
}

func (tr *truth) hash(t *testing.T) store.HashKV {
	t.Helper()
	h, current, err := tr.kv.HashStorage().HashByRev(0)
	if err != nil {
		t.Fatal(err)
	}
	return store.HashKV{Hash: h.Hash, HashRevision: h.Revision, CompactRevision: h.CompactRevision, CurrentRevision: current}
}

// changes rings a test's bell whenever a store changes.
func changes(t *testing.T, b *bell, st *store.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for {
			changed := st.Changed()
			b.ring()
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
}

// A real store is equal to the storage that it follows, by etcd's own hash,
// over a writer at work, lost connections, and a compaction. (Rows 5, 7, 10.)
func TestFollowsExactly(t *testing.T) {
	tr := newTruth(t)
	tr.write(200)
	dir := t.TempDir()
	st, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t)
	w.cfg.Replica = st
	changes(t, w.bell, st)
	compacted := func() int64 { // 100 once the writer is done
		if tr.kv.Rev() < 1201 {
			return 0
		}
		return 100
	}
	// Each connection is cut after a few frames, the first within its snapshot.
	var writers sync.WaitGroup
	serve := func(cut int) script {
		return func(c *conn) {
			writers.Go(func() { tr.write(200) })
			ack, from := helloAck(tr.kv.Rev()), c.hello.LastAppliedLSN+1
			if from == 1 {
				rev, data := tr.snapshot(t)
				c.accept(snapshotAck(rev, data))
				frames := chunks(rev, data)
				s := c.bulk()
				if cut == 0 {
					put(s, frames[:len(frames)/2]...)
					return
				}
				put(s, frames...)
				if s != nil {
					_ = s.Close()
				}
				from = rev + 1
			} else {
				c.accept(ack)
			}
			s := c.bulk()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for sent := 0; sent != cut; {
				select {
				case <-c.Context().Done():
					return
				case <-tick.C:
				}
				f, next := tr.frame(t, from)
				if f == nil {
					c.send(wire.Heartbeat{HeadLSN: next - 1, CompactLSN: compacted(), StalenessMS: -1})
					continue
				}
				put(s, f)
				from, sent = next, sent+1
			}
		}
	}
	src := w.source(serve(0), serve(3), serve(7), serve(1), serve(-1))
	w.run()
	w.bell.until(t, "the store is at the head and compacted", func() bool { return st.Applied() == 1201 && st.Compacted() == 100 })
	writers.Wait()
	if src.count() != 5 {
		t.Fatalf("%d connections", src.count())
	}
	done, err := tr.kv.Compact(traceutil.TODO(), 100)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	got, err := st.HashKV(t.Context(), 0)
	if want := tr.hash(t); err != nil || got != want {
		t.Errorf("hash %+v, want %+v: %v", got, want, err)
	}
	c := src.conn(4)
	w.bell.until(t, "all is acknowledged as durable", func() bool { a, _ := c.lastAck(); return a.DurableLSN == 1201 })
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range files {
		if strings.HasSuffix(e.Name(), ".partial") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

// A store that is given another history says so, and keeps its own. (Row 3.)
func TestStoreDiverges(t *testing.T) {
	tr := newTruth(t)
	tr.write(50)
	st, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	rev, data := tr.snapshot(t)
	w := newWorld(t)
	w.cfg.Replica = st
	w.source(func(c *conn) {
		c.accept(snapshotAck(rev, data))
		c.giveSnapshot(rev, data)
		put(c.bulk(), upTo(t, rev+1, rev+1)) // its value is no key-value
		c.hold()
	})
	if _, ok := w.run().wait(t).(*heliograph.DivergedError); !ok {
		t.Errorf("lost: %v", w.reporter.losses())
	}
	if st.Applied() != rev {
		t.Errorf("applied %d, want %d", st.Applied(), rev)
	}
}
