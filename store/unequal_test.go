package store_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

// What a verification has found is durable on return, and goes with the contents.
func TestUnequalIsNotForgotten(t *testing.T) {
	src := newSource(t)
	src.put("a", "1")
	dir := t.TempDir()
	st := newStore(t, store.Config{Dir: dir, CommitInterval: time.Hour})
	found := &heliograph.DivergedError{Rev: 2, Why: "HashKV differs"}
	if err := st.SetUnequal(st.Generation(), found); err == nil {
		t.Error("noted of no contents")
	}
	mustReceive(t, st, src.snapshot())
	if err := st.SetUnequal(st.Generation()-1, found); err == nil || st.Unequal() != nil {
		t.Errorf("noted of contents that were replaced: %v", st.Unequal())
	}
	if err := st.SetUnequal(st.Generation(), found); err != nil {
		t.Fatal(err)
	}
	if got := st.Unequal(); got != found {
		t.Errorf("noted %v", got)
	}

	b, err := os.ReadFile(filepath.Join(dir, "default.db")) // what a crash would leave
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "default.db"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	st = newStore(t, store.Config{Dir: dir})
	if got := st.Unequal(); got == nil || *got != *found {
		t.Fatalf("after a crash: %v", got)
	}
	below := newStore(t, store.Config{})
	mustReceive(t, below, read(t, st))
	if got := below.Unequal(); got != nil {
		t.Errorf("a copy has got the note: %v", got)
	}

	if err := st.Reset(); err != nil {
		t.Fatal(err)
	}
	mustReceive(t, st, src.snapshot())
	if got := st.Unequal(); got != nil {
		t.Errorf("after a reset: %v", got)
	}
}
