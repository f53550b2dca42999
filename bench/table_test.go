package bench

import (
	"os"
	"strings"
	"testing"
)

func TestTableRenders(t *testing.T) {
	speed, size := row{"speed, 1/s", 0}, row{"größe, MiB", 1}
	tab := newTable("Both", []string{"a", "b"}, []row{speed, size})
	for _, v := range []float64{1000, 3000} {
		tab.add(speed, "a", v)
		tab.add(speed, "b", 2*v)
	}
	tab.addRatios(size, "b", speed, "b", "a", 1)
	tab.note("A note.")
	tab.note("A note.")
	var got strings.Builder
	if err := tab.render(&got); err != nil {
		t.Fatal(err)
	}
	want := `### Both

| median (min..max) |                    a |                    b |
|-------------------|---------------------:|---------------------:|
| speed, 1/s        | 2,000 (1,000..3,000) | 4,000 (2,000..6,000) |
| größe, MiB        |                    – |       2.0 (2.0..2.0) |

A note.

`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
}

// What the document shows is what the command prints: every table with its
// columns and rows, in order, whatever the figures are.
func TestDocumentHasTheTables(t *testing.T) {
	b, err := os.ReadFile("../docs/BENCHMARKS.md")
	if err != nil {
		t.Fatal(err)
	}
	document := labels(string(b))
	for _, tab := range []*table{firstCopyTable(), followTable(), idleTable()} {
		var s strings.Builder
		if err := tab.render(&s); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(document, labels(s.String())) {
			t.Errorf("docs/BENCHMARKS.md has no such table:\n%s", s.String())
		}
	}
}

// labels reduces a document to its titles and, of tables, the header and the
// first column.
func labels(document string) string {
	var kept []string
	for line := range strings.Lines(document) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case strings.HasPrefix(line, "### "):
			kept = append(kept, strings.TrimSpace(line))
		case len(cells) > 2 && strings.HasPrefix(cells[1], "median (min"):
			kept = append(kept, strings.Join(cells, "|"))
		case len(cells) > 2 && !strings.HasPrefix(cells[1], "--"):
			kept = append(kept, cells[1])
		}
	}
	return strings.Join(kept, "\n") + "\n"
}
