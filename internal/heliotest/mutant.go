package heliotest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Mutant returns the path of a helio with a planted bug, by which a test shows
// that its check can fail: in one file of this tree, the only occurrence of old
// is replaced by planted. Just this build sees the change: the tree stays as it
// is, and no other helio holds the bug or a switch for it. If old does not
// occur exactly once, the test fails.
func Mutant(tb testing.TB, file, old, planted string) string {
	tb.Helper()
	path := filepath.Join(tree(), filepath.FromSlash(file))
	src, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if n := strings.Count(string(src), old); n != 1 {
		tb.Fatalf("%s holds %q %d times, want once: the bug to plant has to follow the code", file, old, n)
	}
	dir := tb.TempDir()
	write := func(name string, content []byte) string {
		out := filepath.Join(dir, name)
		if err := os.WriteFile(out, content, 0o600); err != nil {
			tb.Fatal(err)
		}
		return out
	}
	mutated := write("mutated.go", []byte(strings.Replace(string(src), old, planted, 1)))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err != nil {
		tb.Fatal(err)
	}
	binary := filepath.Join(dir, "helio")
	if err := build(binary, "-overlay", write("overlay.json", overlay)); err != nil {
		tb.Fatal(err)
	}
	return binary
}
