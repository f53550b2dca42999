package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// Whatever does not fit the history is refused before anything is written, and
// the right batch is still accepted afterwards. FAULTS 3.
func TestDiverged(t *testing.T) {
	src := newSource(t)
	src.put("a", "1")
	created := src.put("b", "1")
	src.put("b", "2")
	src.del("a")
	snapshot := src.snapshot()
	rev := src.do(func(tx mvcc.TxnWrite) {
		tx.Put([]byte("b"), []byte("secret"), 7)
		tx.Put([]byte("c"), []byte("secret"), 0)
	})
	right := src.batch(rev)
	src.del("b")
	deletion := src.batch(rev + 1)

	b := func() *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte("b"), Value: []byte("secret"), CreateRevision: created, ModRevision: rev, Version: 3, Lease: 7}
	}
	put := func(kvs ...*mvccpb.KeyValue) heliograph.Batch {
		batch := heliograph.Batch{Rev: rev}
		for i, kv := range kvs {
			batch.Records = append(batch.Records, heliograph.Record{Key: revKey(rev, int64(i), false), Value: marshal(t, kv)})
		}
		return batch
	}
	with := func(f func(kv *mvccpb.KeyValue)) heliograph.Batch {
		kv := b()
		f(kv)
		return put(kv)
	}
	raw := func(key, value []byte) heliograph.Batch {
		return heliograph.Batch{Rev: rev, Records: []heliograph.Record{{Key: key, Value: value}}}
	}
	del := func(key string) heliograph.Batch {
		return raw(revKey(rev, 0, true), marshal(t, &mvccpb.KeyValue{Key: []byte(key)}))
	}
	many := make([]*mvccpb.KeyValue, 20)
	for i := range many {
		many[i] = &mvccpb.KeyValue{Key: fmt.Appendf(nil, "m%d", i%19), CreateRevision: rev, ModRevision: rev, Version: 1}
	}

	tests := map[string]heliograph.Batch{
		"no records":              {Rev: rev},
		"create revision":         with(func(kv *mvccpb.KeyValue) { kv.CreateRevision-- }),
		"create revision 0":       with(func(kv *mvccpb.KeyValue) { kv.CreateRevision = 0 }),
		"created now":             with(func(kv *mvccpb.KeyValue) { kv.CreateRevision, kv.Version = rev, 1 }),
		"version":                 with(func(kv *mvccpb.KeyValue) { kv.Version++ }),
		"version 0":               with(func(kv *mvccpb.KeyValue) { kv.Version = 0 }),
		"mod revision":            with(func(kv *mvccpb.KeyValue) { kv.ModRevision++ }),
		"key that is not here":    with(func(kv *mvccpb.KeyValue) { kv.Key = []byte("x") }),
		"key that was deleted":    with(func(kv *mvccpb.KeyValue) { kv.Key = []byte("a") }),
		"no key":                  with(func(kv *mvccpb.KeyValue) { kv.Key = nil }),
		"unknown field":           raw(revKey(rev, 0, false), append(marshal(t, b()), 7<<3, 1)),
		"zero field":              raw(revKey(rev, 0, false), append(marshal(t, withLease(b(), 0)), 6<<3, 0)),
		"field twice":             raw(revKey(rev, 0, false), append(marshal(t, b()), 6<<3, 7)),
		"long varint":             raw(revKey(rev, 0, false), append(marshal(t, withLease(b(), 0)), 6<<3, 0x87, 0)),
		"truncated value":         raw(revKey(rev, 0, false), marshal(t, b())[:10]),
		"not a revision key":      raw([]byte("b"), marshal(t, b())),
		"key of another revision": raw(revKey(rev+1, 0, false), marshal(t, b())),
		"sub revision":            raw(revKey(rev, 1, false), marshal(t, b())),
		"put marked as delete":    raw(revKey(rev, 0, true), marshal(t, b())),
		"delete marked as put":    raw(revKey(rev, 0, false), marshal(t, &mvccpb.KeyValue{Key: []byte("b")})),
		"delete of nothing":       del("x"),
		"delete of a deleted key": del("a"),
		"key twice":               put(b(), b()),
		"key twice among many":    put(many...),
		"second record wrong":     put(b(), &mvccpb.KeyValue{Key: []byte("c"), CreateRevision: rev, ModRevision: rev, Version: 2}),
	}

	st := newStore(t, store.Config{})
	mustReceive(t, st, snapshot)
	hash, err := st.HashKV(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, batch := range tests {
		err := st.Apply(batch)
		d, ok := errors.AsType[*heliograph.DivergedError](err)
		if !ok || d.Rev != rev {
			t.Errorf("%s: got %v, want a DivergedError at %d", name, err, rev)
			continue
		}
		if strings.Contains(d.Why, "secret") {
			t.Errorf("%s: a value is in the error: %v", name, err)
		}
		if got, err := st.HashKV(t.Context(), 0); err != nil || got != hash || st.Applied() != rev-1 {
			t.Errorf("%s: the store changed: %+v at %d, %v", name, got, st.Applied(), err)
		}
	}
	for _, batch := range []heliograph.Batch{right, deletion} {
		if err := st.Apply(batch); err != nil {
			t.Fatalf("the right batch after wrong ones: %v", err)
		}
	}
	mustEqual(t, st, src)
}

// withLease returns kv with another lease.
func withLease(kv *mvccpb.KeyValue, lease int64) *mvccpb.KeyValue {
	kv.Lease = lease
	return kv
}
