package bench

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// samples are measurements of one thing, in any order.
type samples []float64

// median returns the middle value, or the mean of the two in the middle.
func (s samples) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// quantile returns the smallest value that a share q of all does not exceed.
func (s samples) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return sorted[min(n-1, max(0, int(math.Ceil(q*float64(n)))-1))]
}

// text returns the median and, of several values, minimum and maximum.
func (s samples) text(decimals int) string {
	switch len(s) {
	case 0:
		return "–"
	case 1:
		return number(s[0], decimals)
	}
	return fmt.Sprintf("%s (%s..%s)", number(s.median(), decimals), number(slices.Min(s), decimals), number(slices.Max(s), decimals))
}

// number writes v with commas between the thousands.
func number(v float64, decimals int) string {
	whole, fraction, dotted := strings.Cut(strconv.FormatFloat(math.Abs(v), 'f', decimals, 64), ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if dotted {
		whole += "." + fraction
	}
	if v < 0 && strings.ContainsAny(whole, "123456789") {
		whole = "-" + whole
	}
	return whole
}

// ms is a duration as the tables show delays.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
