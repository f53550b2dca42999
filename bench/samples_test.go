package bench

import (
	"math"
	"testing"
)

func TestSamples(t *testing.T) {
	for _, tc := range []struct {
		values      samples
		median, p99 float64
		text        string
	}{
		{samples{3}, 3, 3, "3.0"},
		{samples{3, 1, 2}, 2, 3, "2.0 (1.0..3.0)"},
		{samples{4, 1, 2, 3}, 2.5, 4, "2.5 (1.0..4.0)"},
		{samples{-1200, 1234567.25}, 616683.625, 1234567.25, "616,683.6 (-1,200.0..1,234,567.2)"},
	} {
		if got := tc.values.median(); got != tc.median {
			t.Errorf("%v: median %v, want %v", tc.values, got, tc.median)
		}
		if got := tc.values.quantile(0.99); got != tc.p99 {
			t.Errorf("%v: p99 %v, want %v", tc.values, got, tc.p99)
		}
		if got := tc.values.text(1); got != tc.text {
			t.Errorf("%v: text %q, want %q", tc.values, got, tc.text)
		}
	}
	var hundred samples
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	if got := hundred.quantile(0.99); got != 99 {
		t.Errorf("p99 of 1 to 100 is %v, want 99", got)
	}
	if got := (samples{}).median(); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
	if got := (samples{}).text(1); got != "–" {
		t.Errorf("text of nothing is %q", got)
	}
	if got := number(-0.001, 2); got != "0.00" {
		t.Errorf("a negative number that rounds to zero is %q", got)
	}
}
