package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

func readAll(t *testing.T, snap heliograph.Snapshot) []byte {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(snap, 0, snap.Size()))
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(data) != snap.SHA256() {
		t.Fatal("snapshot does not have the hash it claims")
	}
	return data
}

// A snapshot taken while a writer runs at full speed ends exactly where it says,
// and history goes on from there without a gap.
func TestSnapshotUnderWriter(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{CommitInterval: 5 * time.Millisecond})
	mustReceive(t, st, src.snapshot())
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for rev := int64(2); ; rev++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := st.Apply(generated(rev)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 5 {
		before := st.Applied()
		waitFor(t, st, "some writes", func() bool { return st.Applied() > before+500 })
		asked := st.Applied()
		snap, err := st.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		second := openStore(t, store.Config{Dir: t.TempDir()})
		if rev := mustReceive(t, second, readAll(t, snap)); rev != snap.Rev() || rev < asked {
			t.Errorf("copy holds revision %d, Rev says %d, asked at %d", rev, snap.Rev(), asked)
		}
		for _, b := range history(t, st, snap.Rev()+1, 1<<20) {
			if err := second.Apply(b); err != nil {
				t.Fatalf("the first revision after the snapshot at %d: %v", snap.Rev(), err)
			}
		}
		snap.Release()
		at := second.Applied()
		got, err := second.HashKV(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		want, err := st.HashKV(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if got.Hash != want.Hash {
			t.Errorf("hashes at %d differ", at)
		}
		closeStore(t, second)
	}
	close(stop)
	writer.Wait()
}

// Those who ask at the same time share one copy, whose file goes with the last
// of them.
func TestSnapshotIsShared(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := newStore(t, store.Config{Dir: dir})
	if _, err := st.Snapshot(t.Context()); !errors.Is(err, heliograph.ErrNotReady) {
		t.Errorf("snapshot of nothing: %v", err)
	}
	src.put("a", "b")
	mustReceive(t, st, src.snapshot())
	snaps := make([]heliograph.Snapshot, 8)
	var wg sync.WaitGroup
	for i := range snaps {
		wg.Go(func() {
			var err error
			if snaps[i], err = st.Snapshot(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if got := strings.Join(files(t, dir), " "); strings.Count(got, "spool/") != 1 {
		t.Errorf("files while 8 share: %s", got)
	}
	for _, s := range snaps {
		readAll(t, s)
		s.Release()
		s.Release()
	}
	if got := strings.Join(files(t, dir), " "); strings.Contains(got, "spool/") {
		t.Errorf("files when nobody uses a snapshot: %s", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if snap, err := st.Snapshot(ctx); err == nil {
		snap.Release() // it was ready at once
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// An unused copy waits for the next asker, then goes.
func TestSnapshotLingers(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := newStore(t, store.Config{Dir: dir, SpoolLinger: 50 * time.Millisecond})
	mustReceive(t, st, src.snapshot())
	snap, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snap.Release()
	deadline := time.Now().Add(20 * time.Second)
	for strings.Contains(strings.Join(files(t, dir), " "), "spool/") {
		if time.Now().After(deadline) {
			t.Fatal("the unused copy stayed")
		}
	}
}

// At most two copies exist; the older one ages out of being shared.
func TestSnapshotsAreBounded(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := newStore(t, store.Config{Dir: dir, SpoolShare: time.Nanosecond})
	mustReceive(t, st, src.snapshot())
	var snaps []heliograph.Snapshot
	for i := range 5 {
		src.put("a", fmt.Sprint(i))
		follow(t, st, src)
		snap, err := st.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, snap)
	}
	if got := strings.Count(strings.Join(files(t, dir), " "), "spool/"); got != 2 {
		t.Errorf("%d copies on the disk, want 2", got)
	}
	if snaps[0].Rev() != 2 || snaps[1].Rev() != 3 || snaps[4].Rev() != 3 {
		t.Errorf("revisions %d, %d, …, %d", snaps[0].Rev(), snaps[1].Rev(), snaps[4].Rev())
	}
	for _, s := range snaps {
		s.Release()
	}
}

// Nothing above a snapshot in use is compacted; when it is released, the
// compaction follows.
func TestSnapshotPinsHistory(t *testing.T) {
	src := newSource(t)
	st := newStore(t, store.Config{})
	for range 10 {
		src.put("a", "b")
	}
	mustReceive(t, st, src.snapshot())
	snap, err := st.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		src.put("a", "c")
	}
	follow(t, st, src)
	st.Compact(5) // below the pin: allowed
	waitFor(t, st, "compaction below the snapshot", func() bool { return st.Compacted() == 5 })
	st.Compact(15)
	// Each call wakes the keeper, so that a pin that does not hold would show
	// in most runs, here or in the missing history.
	for range 20 {
		if _, err := st.Commit(); err != nil {
			t.Fatal(err)
		}
		st.Compact(16)
	}
	if got := history(t, st, snap.Rev()+1, 1<<20); len(got) != 10 {
		t.Errorf("history after the snapshot has %d revisions, want 10", len(got))
	}
	if got := st.Compacted(); got != 5 {
		t.Errorf("compacted at %d while %d is in use", got, snap.Rev())
	}
	snap.Release()
	waitFor(t, st, "compaction after release", func() bool { return st.Compacted() == 16 })
	if _, err := st.History(16, 100, nil); !errors.Is(err, heliograph.ErrCompacted) {
		t.Errorf("history from the compaction revision: %v", err)
	}
	src.compact(16)
	mustEqual(t, st, src)
}

// A store with History stays behind, remembers over a restart what it still has
// to do, and does it at exactly the upstream's revision.
func TestCompactionIsDelayed(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := openStore(t, store.Config{Dir: dir, History: time.Hour})
	mustReceive(t, st, src.snapshot())
	for i := range 20 {
		src.put("a", fmt.Sprint(i))
	}
	follow(t, st, src)
	st.Compact(10)
	st.Compact(12)
	st.Compact(12)
	st.Compact(100) // not applied yet
	if _, err := st.Commit(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, st)

	st = openStore(t, store.Config{Dir: dir, History: time.Hour})
	if got := len(history(t, st, 2, 1<<20)); got != 20 || st.Compacted() != 0 {
		t.Errorf("history holds %d revisions, compacted at %d", got, st.Compacted())
	}
	closeStore(t, st)

	st = openStore(t, store.Config{Dir: dir, History: time.Nanosecond})
	defer func() { closeStore(t, st) }()
	waitFor(t, st, "delayed compaction", func() bool { return st.Compacted() == 12 })
	src.compact(12)
	mustEqual(t, st, src)
	for i := range 100 {
		src.put("b", fmt.Sprint(i))
	}
	follow(t, st, src)
	waitFor(t, st, "compaction at a revision that was ahead", func() bool { return st.Compacted() == 100 })
	src.compact(100)
	mustEqual(t, st, src)
}

// A compaction that a source had begun is finished by the store.
func TestCompactionIsResumed(t *testing.T) {
	src := newSource(t)
	for i := range 50 {
		src.put(fmt.Sprint(i%3), "v")
	}
	tx := src.be.BatchTx()
	tx.LockOutsideApply()
	mvcc.UnsafeSetScheduledCompact(tx, 40)
	tx.Unlock()
	st := newStore(t, store.Config{})
	mustReceive(t, st, src.snapshot())
	if got := st.Compacted(); got != 40 {
		t.Errorf("compacted at %d, want 40", got)
	}
	src.compact(40)
	mustEqual(t, st, src)
}
