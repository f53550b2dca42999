package store_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// digestOf computes a digest as PROTOCOL.md says, from the source's records.
func digestOf(src *source, from, to int64) (sum uint64) {
	for rev := max(from, 2); rev <= to; rev++ {
		for _, r := range src.batch(rev).Records {
			b := append([]byte{byte(len(r.Key))}, r.Key...)
			b = binary.BigEndian.AppendUint32(b, uint32(len(r.Value)))
			sum += xxhash.Sum64(append(b, r.Value...))
		}
	}
	return sum
}

func wantDigest(t *testing.T, st *store.Store, from, to int64, want uint64) {
	t.Helper()
	if got, err := st.Digest(from, to); err != nil || got != want {
		t.Errorf("digest of %d to %d: %x, %v; want %x", from, to, got, err, want)
	}
}

// write makes revisions of puts, deletes and transactions until rev.
func (s *source) writeUntil(rev int64) {
	rng := rand.New(rand.NewPCG(1, uint64(rev)))
	for s.kv.Rev() < rev {
		switch key := fmt.Sprint("k", rng.IntN(50)); rng.IntN(5) {
		case 0:
			s.del(key)
		case 1:
			s.do(func(tx mvcc.TxnWrite) {
				tx.Put([]byte(key), []byte("one"), 0)
				tx.Put([]byte("other"), []byte("two"), 0)
			})
		default:
			s.put(key, fmt.Sprint(s.kv.Rev()))
		}
	}
}

// Digests are of the records, wherever a store began, and whatever it has
// compacted or forgotten since.
func TestDigestsDoNotDependOnWhereAStoreBegan(t *testing.T) {
	src := newSource(t)
	src.put("a", "1")
	early := newStore(t, store.Config{})
	mustReceive(t, early, src.snapshot())
	src.writeUntil(1500)
	dir := t.TempDir()
	late := openStore(t, store.Config{Dir: dir})
	mustReceive(t, late, src.snapshot())
	src.writeUntil(3500)
	follow(t, early, src)
	follow(t, late, src)

	want := []heliograph.BlockDigest{
		{Block: 0, Sum: digestOf(src, 0, 1023)}, {Block: 1, Sum: digestOf(src, 1024, 2047)}, {Block: 2, Sum: digestOf(src, 2048, 3071)},
	}
	tail := digestOf(src, 3072, 3500)
	check := func(when string, st *store.Store) {
		t.Helper()
		if got := st.Digests(); !slices.Equal(got, want) {
			t.Errorf("%s: digests %x, want %x", when, got, want)
		}
		p := st.Proof()
		if !slices.Equal(p.Blocks, want) || p.Rev != 3500 || !slices.Contains(p.Tails, heliograph.TailDigest{From: 3072, Sum: tail}) {
			t.Errorf("%s: proof %+v", when, p)
		}
		for _, d := range p.Tails {
			if d.Sum != digestOf(src, d.From, 3500) {
				t.Errorf("%s: tail from %d: %x", when, d.From, d.Sum)
			}
		}
		wantDigest(t, st, 0, 1023, want[0].Sum)
		wantDigest(t, st, 3072, 3500, tail)
		wantDigest(t, st, 3072, 3400, digestOf(src, 3072, 3400))
		wantDigest(t, st, 3450, 3500, digestOf(src, 3450, 3500))
	}
	check("early", early)
	check("late", late)
	wantDigest(t, early, 1000, 1100, digestOf(src, 1000, 1100)) // across blocks
	wantDigest(t, early, 1024, 1030, digestOf(src, 1024, 1030))

	// Compaction takes records, not digests; nor does a restart.
	ends := digestOf(src, 3072, 3444)
	src.compact(3440)
	late.Compact(3440)
	waitFor(t, late, "compacted", func() bool { return late.Compacted() == 3440 })
	if got := late.Digests(); !slices.Equal(got, want) {
		t.Errorf("compacted: digests %x, want %x", got, want)
	}
	wantDigest(t, late, 3072, 3444, ends)
	closeStore(t, late)
	late = openStore(t, store.Config{Dir: dir})
	defer closeStore(t, late)
	if got := late.Digests(); !slices.Equal(got, want) {
		t.Errorf("reopened: digests %x, want %x", got, want)
	}
	wantDigest(t, late, 3072, 3500, tail)
	wantDigest(t, late, 3072, 3444, ends)
	if _, err := late.Digest(3000, 3300); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("digest of what is gone: %v", err)
	}
	if _, err := late.Digest(3072, 3501); !errors.Is(err, heliograph.ErrFutureRevision) {
		t.Errorf("digest of what is to come: %v", err)
	}
	if _, err := late.Digest(1, 2000); err == nil {
		t.Error("a digest of more than a block")
	}

	// A snapshot carries them to who cannot compute them any more.
	copied := newStore(t, store.Config{})
	mustReceive(t, copied, read(t, late))
	if got := copied.Digests(); !slices.Equal(got, want) {
		t.Errorf("copied: digests %x, want %x", got, want)
	}
	wantDigest(t, copied, 3072, 3500, tail)
	// One from etcd cannot.
	fresh := newStore(t, store.Config{})
	mustReceive(t, fresh, src.snapshot())
	if p := fresh.Proof(); len(p.Blocks) != 0 || p.Tails[0] != (heliograph.TailDigest{From: 3441, Sum: digestOf(src, 3441, 3500)}) {
		t.Errorf("from etcd: proof %+v", p)
	}
	src.writeUntil(5200)
	for _, st := range []*store.Store{early, late, copied, fresh} {
		follow(t, st, src)
	}
	if a, b := early.Digests(), fresh.Digests(); len(a) != 5 || !slices.Equal(b, a[4:]) || !slices.Equal(late.Digests(), a) {
		t.Errorf("digests %x and %x", a, b)
	}
}

// read returns the bytes of a store's snapshot.
func read(t *testing.T, st *store.Store) []byte {
	t.Helper()
	snap, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	b := make([]byte, snap.Size())
	if _, err := snap.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// FAULTS.md row 3, and 27 on the disk: a file that was written to behind our back
// is noticed when it is opened, before it meets a source.
func TestRow03StrayWriteIsNoticedAtOpen(t *testing.T) {
	for _, compacted := range []bool{false, true} {
		src := newSource(t)
		src.put("a", "1")
		dir := t.TempDir()
		st := openStore(t, store.Config{Dir: dir})
		mustReceive(t, st, src.snapshot())
		src.writeUntil(2500)
		follow(t, st, src)
		if compacted {
			st.Compact(2100)
			waitFor(t, st, "compacted", func() bool { return st.Compacted() == 2100 })
		}
		closeStore(t, st)
		key := revKey(2200, 0, false)
		alter(t, filepath.Join(dir, "default.db"), func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte("key"))
			for rev := int64(2200); ; rev++ {
				key = revKey(rev, 0, false)
				if v := b.Get(key); v != nil {
					v = slices.Clone(v)
					v[2] ^= 1 // a letter of the key
					return b.Put(key, v)
				}
			}
		})
		st = openStore(t, store.Config{Dir: dir})
		diverged, ok := errors.AsType[*heliograph.DivergedError](st.Damaged())
		if !ok || !strings.Contains(diverged.Why, "written to or is damaged") || diverged.Rev != 2048 {
			t.Errorf("compacted %v: %v", compacted, st.Damaged())
		}
		src.put("a", "b")
		if err := st.Apply(src.batch(2501)); err == nil || st.Applied() != 2500 {
			t.Errorf("applied to a damaged file: %v", err)
		}
		// The evidence is neither written over nor compacted away.
		changed := st.Changed()
		st.Compact(2500)
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		}
		closeStore(t, st)
		st = openStore(t, store.Config{Dir: dir})
		if st.Damaged() == nil {
			t.Errorf("compacted at %d, and a damaged file is taken for a good one", st.Compacted())
		}
		closeStore(t, st)
	}
}

func alter(t *testing.T, path string, f func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// What is kept stays small, holds the newest, and meets what others keep.
func TestKeptDigestsAreFew(t *testing.T) {
	var kept store.Tally
	want := make(map[int64][]int64)
	for block := range int64(300_000) {
		kept.Keep(block)
		if block%99_999 == 0 {
			want[block] = kept.Blocks()
		}
	}
	got := kept.Blocks()
	if n := len(got); n > 500 || got[0] != 0 || got[n-1] != 299_999 || got[n-64] != 299_999-63 {
		t.Errorf("%d blocks, from %d to %d", n, got[0], got[n-1])
	}
	for block, earlier := range want {
		common := int64(0)
		for _, b := range store.Choose(earlier) {
			if slices.Contains(got, b) {
				common = b
			}
		}
		if age := 299_999 - block; block-common > max(1, age/16) {
			t.Errorf("a mirror at block %d and a source %d blocks ahead share %d as the newest", block, age, common)
		}
	}
}

func BenchmarkProof(b *testing.B) {
	st := benchStore(b, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		st.Proof()
	}
}

// BenchmarkHandshake is what a source computes for one mirror.
func BenchmarkHandshake(b *testing.B) {
	for _, revs := range []int64{10_000, 200_000} {
		b.Run(fmt.Sprintf("revisions=%d", revs), func(b *testing.B) {
			st := benchStore(b, revs)
			p := st.Proof()
			for b.Loop() {
				for _, d := range p.Blocks {
					if sum, ok := st.DigestAt(d.Block); ok && sum != d.Sum {
						b.Fatal("differs")
					}
				}
				if _, err := st.Digest(p.Blocks[len(p.Blocks)-2].First(), p.Blocks[len(p.Blocks)-2].First()+500); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchStore(b *testing.B, revs int64) *store.Store {
	b.Helper()
	st := openStore(b, store.Config{Dir: b.TempDir(), CommitInterval: 1 << 40})
	b.Cleanup(func() { closeStore(b, st) })
	src := openSource(b, b.TempDir())
	data := src.snapshot()
	src.close()
	mustReceive(b, st, data)
	for rev := st.Applied() + 1; rev <= revs; rev++ {
		if err := st.Apply(generated(rev)); err != nil {
			b.Fatal(err)
		}
	}
	return st
}

// A proof does not read all of what is large, and is one all the same.
func TestProofOfLargeValues(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	large := strings.Repeat("x", 1<<20)
	for range 20 {
		src.put("a", large)
	}
	follow(t, st, src)
	p := st.Proof()
	want := []heliograph.TailDigest{{From: 2, Sum: digestOf(src, 2, 21)}, {From: 18, Sum: digestOf(src, 18, 21)}, {From: 21, Sum: digestOf(src, 21, 21)}}
	if !slices.Equal(p.Tails, want) {
		t.Errorf("tails %v, want %v", p.Tails, want)
	}
	wantDigest(t, st, 2, 20, digestOf(src, 2, 20)) // what follows is short
	if _, err := st.Digest(5, 17); err == nil {
		t.Error("a digest of 13 MiB")
	}
}
