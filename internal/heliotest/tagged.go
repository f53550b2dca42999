package heliotest

import (
	"path/filepath"
	"testing"
)

// Tagged returns the path of a helio that is built with a build tag, such as that
// of a planted defect, for the test.
func Tagged(tb testing.TB, tag string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "helio-"+tag)
	if err := build(path, "-tags", tag); err != nil {
		tb.Fatal(err)
	}
	return path
}
