package session

import "fmt"

// Cursor is a place between two records: the next record is change Sub of
// revision Rev. Sub is 0 except within a revision that takes several frames.
type Cursor struct {
	Rev int64
	Sub int64
}

// Before reports whether c comes before d.
func (c Cursor) Before(d Cursor) bool {
	return c.Rev < d.Rev || c.Rev == d.Rev && c.Sub < d.Sub
}

// Whole returns the last revision that lies before c as a whole.
func (c Cursor) Whole() int64 { return c.Rev - 1 }

// String returns rev/sub; [ParseCursor] reads it back.
func (c Cursor) String() string { return fmt.Sprintf("%d/%d", c.Rev, c.Sub) }

// ParseCursor reads what [Cursor.String] wrote.
func ParseCursor(s string) (Cursor, error) {
	var c Cursor
	var rest string
	n, _ := fmt.Sscanf(s+" .", "%d/%d %s", &c.Rev, &c.Sub, &rest)
	if n != 3 || rest != "." || c.Rev < 0 || c.Sub < 0 || c.String() != s {
		return Cursor{}, fmt.Errorf("cursor %.40q: want revision/sub", s)
	}
	return c, nil
}
