package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// row is a figure; its label holds the unit.
type row struct {
	label    string
	decimals int
}

// table collects figures over the rounds, for each row and column.
type table struct {
	title   string
	columns []string
	rows    []row
	notes   []string
	values  map[string]samples // by row and column
}

func newTable(title string, columns []string, rows []row) *table {
	return &table{title: title, columns: columns, rows: rows, values: make(map[string]samples)}
}

// add adds one round's value.
func (t *table) add(r row, column string, v float64) {
	if !slices.Contains(t.rows, r) || !slices.Contains(t.columns, column) {
		panic(fmt.Sprintf("table %q has no %q of %q", t.title, r.label, column))
	}
	key := r.label + "\x00" + column
	t.values[key] = append(t.values[key], v)
}

// get returns the values of all rounds so far, in their order.
func (t *table) get(r row, column string) samples { return t.values[r.label+"\x00"+column] }

// note adds a line below the table.
func (t *table) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(t.notes, s) {
		t.notes = append(t.notes, s)
	}
}

// render writes the table as Markdown that is aligned for a terminal, too.
func (t *table) render(w io.Writer) error {
	lines := [][]string{append([]string{"median (min..max)"}, t.columns...)}
	for _, r := range t.rows {
		line := []string{r.label}
		for _, c := range t.columns {
			line = append(line, t.get(r, c).text(r.decimals))
		}
		lines = append(lines, line)
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, s := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(s))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", t.title)
	for i, line := range lines {
		b.WriteString("|")
		for j, s := range line {
			pad := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(s))
			if j == 0 {
				s += pad
			} else {
				s = pad + s
			}
			b.WriteString(" " + s + " |")
		}
		b.WriteString("\n")
		if i == 0 {
			b.WriteString("|" + strings.Repeat("-", widths[0]+2) + "|")
			for _, n := range widths[1:] {
				b.WriteString(strings.Repeat("-", n+1) + ":|")
			}
			b.WriteString("\n")
		}
	}
	if len(t.notes) > 0 {
		b.WriteString("\n" + strings.Join(t.notes, "\n") + "\n")
	}
	_, err := io.WriteString(w, b.String()+"\n")
	return err
}
