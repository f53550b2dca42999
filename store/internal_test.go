package store

import (
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func TestWishes(t *testing.T) {
	start := time.UnixMilli(1_700_000_000_000)
	at := func(m int) time.Time { return start.Add(time.Duration(m) * time.Minute) }
	var w wishes
	for i, rev := range []int64{10, 20, 20, 15, 30} {
		var news bool
		w, news = w.with(rev, at(i))
		if want := rev != 15 && i != 2; news != want {
			t.Errorf("wish %d at %d is news: %v", rev, i, news)
		}
	}
	for _, tt := range []struct {
		now   int
		limit int64
		rev   int64
		next  time.Time
	}{
		{0, 100, 0, at(60)},
		{59, 100, 0, at(60)},
		{60, 100, 10, at(61)},
		{61, 100, 20, at(64)},
		{90, 100, 30, time.Time{}},
		{90, 29, 20, time.Time{}},
		{90, 9, 0, time.Time{}},
		{-100, 100, 0, at(-40)}, // the clock went back: counted from now
	} {
		if rev, next := w.due(at(tt.now), time.Hour, tt.limit); rev != tt.rev || !next.Equal(tt.next) {
			t.Errorf("due at minute %d up to %d: %d, %v; want %d, %v", tt.now, tt.limit, rev, next, tt.rev, tt.next)
		}
	}
	if got := w.after(20); len(got) != 1 || got[0].rev != 30 {
		t.Errorf("after 20: %v", got)
	}
	if got := w.after(5); len(got) != 3 {
		t.Errorf("after 5: %v", got)
	}
	got, err := decodeWishes(w.encode())
	if err != nil || !slices.EqualFunc(got, w, func(a, b wish) bool { return a.rev == b.rev && a.at.Equal(b.at) }) {
		t.Errorf("decoded %v, %v", got, err)
	}
}

func TestWishesAreBounded(t *testing.T) {
	var w wishes
	for rev := int64(1); rev <= maxWishes*5/4; rev++ {
		w, _ = w.with(rev, time.UnixMilli(rev))
		if len(w) > maxWishes {
			t.Fatalf("%d wishes", len(w))
		}
	}
	if w[len(w)-1].rev != maxWishes*5/4 {
		t.Errorf("the newest wish is %d", w[len(w)-1].rev)
	}
	if _, err := decodeWishes(w.encode()); err != nil {
		t.Error(err)
	}
	if _, err := decodeWishes(make([]byte, 16*(maxWishes+1))); err == nil {
		t.Error("a list that is too long was read")
	}
}

// What etcd marshals is accepted; whatever is accepted marshals to itself.
func TestKeyValueIsCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kv := &mvccpb.KeyValue{
			Key:            rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "key"),
			Value:          rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value"),
			CreateRevision: rapid.Int64().Draw(t, "create"),
			ModRevision:    rapid.Int64().Draw(t, "mod"),
			Version:        rapid.Int64().Draw(t, "version"),
			Lease:          rapid.Int64().Draw(t, "lease"),
		}
		data, err := proto.Marshal(kv)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeKeyValue(data); err != nil {
			t.Fatalf("%x: %v", data, err)
		}
		for range 20 {
			i := rapid.IntRange(0, len(data)-1).Draw(t, "at")
			changed := slices.Clone(data)
			changed[i] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
			mustBeCanonical(t, changed)
			mustBeCanonical(t, data[:i])
		}
	})
}

func FuzzKeyValue(f *testing.F) {
	data, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v"), CreateRevision: 2, ModRevision: 300, Version: 3, Lease: 1 << 62})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) { mustBeCanonical(t, data) })
}

func mustBeCanonical(t interface{ Fatalf(string, ...any) }, data []byte) {
	kv, err := decodeKeyValue(data)
	if err != nil {
		return
	}
	again, err := proto.Marshal(&mvccpb.KeyValue{
		Key: kv.key, Value: kv.value, CreateRevision: kv.create, ModRevision: kv.mod, Version: kv.version, Lease: kv.lease,
	})
	if err != nil || !slices.Equal(again, data) {
		t.Fatalf("%x was accepted and marshals to %x, %v", data, again, err)
	}
}
