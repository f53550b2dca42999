package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// FAULTS.md row 2: a source that was created anew and has grown past the replica,
// and has even compacted what the replica knows. Its snapshot has a higher
// revision and the same origin, and must not replace.
func TestRow02SnapshotOfAnotherHistoryIsRefused(t *testing.T) {
	for name, other := range map[string]func(*source){
		"other values":         func(s *source) { fill(s, "k", "other", 30) },
		"other keys":           func(s *source) { fill(s, "x", "value", 30) },
		"compacted":            func(s *source) { fill(s, "x", "value", 30); s.compact(25) },
		"one revision differs": func(s *source) { fill(s, "k", "value", 9); s.put("k3", "x"); fill(s, "k", "value", 20) },
		"a part of it deleted": func(s *source) {
			fill(s, "k", "value", 4)
			s.do(func(tx mvcc.TxnWrite) { tx.DeleteRange([]byte("k"), []byte("l")) })
			fill(s, "k", "value", 20)
		},
	} {
		t.Run(name, func(t *testing.T) {
			src, fork := newSource(t), newSource(t)
			fill(src, "k", "value", 15)
			st := newStore(t, store.Config{})
			mustReceive(t, st, src.snapshot())
			kept := st.Proof()
			other(fork)
			_, err := receive(st, fork.snapshot(), origin)
			if d, ok := errors.AsType[*heliograph.DivergedError](err); !ok || d.Rev < 2 || d.Rev > 16 {
				t.Errorf("got %v", err)
			}
			if st.Applied() != kept.Rev || st.Generation() != 1 {
				t.Errorf("revision %d, generation %d", st.Applied(), st.Generation())
			}
			mustEqual(t, st, src)
		})
	}
}

// A backup that was restored with bumped revisions holds nothing that the replica
// does not hold: what it lacks is what tells.
func TestRow01BumpedBackupIsRefused(t *testing.T) {
	for name, lost := range map[string]func(*source){
		"nothing":      nil,
		"an overwrite": func(s *source) { s.put("k3", "later") },
		"a delete":     func(s *source) { s.del("k3") },
	} {
		src := newSource(t)
		fill(src, "k", "value", 10)
		backup := src.snapshot()
		if lost != nil {
			lost(src)
		}
		st := newStore(t, store.Config{})
		mustReceive(t, st, src.snapshot())
		for _, finished := range []bool{false, true} {
			bumped := rewrite(t, backup, func(tx *bolt.Tx) error {
				meta := tx.Bucket([]byte("meta"))
				err := errors.Join(tx.Bucket([]byte("key")).Put(revKey(1000, 0, false), nil),
					meta.Put([]byte("scheduledCompactRev"), revKey(1000, 0, false)))
				if finished {
					err = errors.Join(err, meta.Put([]byte("finishedCompactRev"), revKey(1000, 0, false)))
				}
				return err
			})
			_, err := receive(st, bumped, origin)
			d, diverged := errors.AsType[*heliograph.DivergedError](err)
			if !diverged || d.Rev != st.Applied()+1 || !strings.Contains(d.Why, "raised to 1000") {
				t.Errorf("%s: %v", name, err)
			}
			if err := st.Reset(); err != nil {
				t.Fatal(err)
			}
			mustReceive(t, st, bumped)
			if st.Applied() != 1000 || st.Floor() != 1000 {
				t.Errorf("%s: revision %d, floor %d", name, st.Applied(), st.Floor())
			}
			if err := st.Reset(); err != nil {
				t.Fatal(err)
			}
			mustReceive(t, st, src.snapshot())
		}
	}
}

// What a snapshot holds below its compaction revision must be current here: else
// something that was here is missing there.
func TestSnapshotThatLacksAnOverwrite(t *testing.T) {
	for name, lost := range map[string]func(*source){
		"an overwrite": func(s *source) { s.put("k3", "later") },
		"a delete":     func(s *source) { s.del("k3") },
	} {
		src := newSource(t)
		fill(src, "k", "value", 10)
		older := src.snapshot()
		lost(src)
		st := newStore(t, store.Config{})
		mustReceive(t, st, src.snapshot())
		for _, finished := range []bool{false, true} {
			compacted := rewrite(t, older, func(tx *bolt.Tx) error {
				meta := tx.Bucket([]byte("meta"))
				err := meta.Put([]byte("scheduledCompactRev"), revKey(1000, 0, false))
				if finished {
					err = errors.Join(err, meta.Put([]byte("finishedCompactRev"), revKey(1000, 0, false)))
				}
				return err
			})
			_, err := receive(st, compacted, origin)
			d, diverged := errors.AsType[*heliograph.DivergedError](err)
			switch {
			case !finished: // not known yet: to be tried again
				if err == nil || diverged || !strings.Contains(err.Error(), "under way") {
					t.Errorf("%s, compacting: %v", name, err)
				}
			case !diverged || d.Rev < 6 || d.Rev > 12:
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func fill(s *source, prefix, value string, n int) {
	for i := range n {
		s.put(fmt.Sprint(prefix, i), value)
	}
}

// A later snapshot of the same history replaces, whatever either side has
// compacted; FAULTS.md rows 4 and 6: it replaces and does not merge, so that what
// was deleted meanwhile is gone.
func TestRow06SnapshotOfTheSameHistoryReplaces(t *testing.T) {
	for _, c := range []struct{ ours, theirs int64 }{{0, 0}, {0, 12}, {8, 8}, {8, 14}, {14, 0}, {0, 40}, {16, 55}} {
		src := newSource(t)
		fill(src, "k", "value", 10)
		src.del("k2") // at 12
		fill(src, "k", "again", 5)
		st := newStore(t, store.Config{})
		mustReceive(t, st, src.snapshot())
		if c.ours > 0 {
			st.Compact(c.ours)
			waitFor(t, st, "compacted", func() bool { return st.Compacted() == c.ours })
		}
		src.del("k4")
		fill(src, "n", "new", 40)
		if c.theirs > 0 {
			src.compact(c.theirs)
		}
		mustReceive(t, st, src.snapshot())
		mustEqual(t, st, src)
		src.put("z", "z")
		follow(t, st, src)
		mustEqual(t, st, src)
	}
}

// Two nodes' kept digests differ although neither has the records any more.
func TestSnapshotWithOtherDigestsIsRefused(t *testing.T) {
	src, fork := newSource(t), newSource(t)
	nodes := make([]*store.Store, 2)
	for i, s := range []*source{src, fork} {
		nodes[i] = newStore(t, store.Config{})
		mustReceive(t, nodes[i], s.snapshot())
		s.put("a", fmt.Sprint(i))
		s.writeUntil(1100)
		s.put("a", "same")
		follow(t, nodes[i], s)
		s.compact(1101)
		nodes[i].Compact(1101)
		waitFor(t, nodes[i], "compacted", func() bool { return nodes[i].Compacted() == 1101 })
	}
	fork.put("b", "b")
	follow(t, nodes[1], fork)
	_, err := receive(nodes[0], read(t, nodes[1]), origin)
	if d, ok := errors.AsType[*heliograph.DivergedError](err); !ok || d.Rev != 2 {
		t.Errorf("got %v", err)
	}
}
