package bench

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/heliograph/heliograph/internal/heliotest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		heliotest.Clean()
		os.Exit(code)
	}))
}

// variant is one column of a table.
type variant struct {
	name string
	run  func(*cell)
}

// rounds runs the variants in turn, as often as told. Each round begins with
// another one, so that none is always the first.
func rounds(b *testing.B, o options, variants []variant) {
	b.Helper()
	for round := range o.rounds {
		for i := range variants {
			v := variants[(round+i)%len(variants)]
			inCell(b, func(c *cell) {
				c.Logf("round %d of %d: %s", round+1, o.rounds, v.name)
				v.run(c)
			})
		}
	}
	b.ReportMetric(0, "ns/op") // the time of all rounds together says nothing
}

// show prints the conditions and the table.
func show(b *testing.B, facts string, t *table) {
	b.Helper()
	if _, err := os.Stdout.WriteString("\n" + facts + "\n"); err != nil {
		b.Fatal(err)
	}
	if err := t.render(os.Stdout); err != nil {
		b.Fatal(err)
	}
}

// addRatios fills a row of a column with a's values divided by b's, round by
// round, times scale.
func (t *table) addRatios(to row, column string, r row, a, b string, scale float64) {
	as, bs := t.get(r, a), t.get(r, b)
	for i := range min(len(as), len(bs)) {
		t.add(to, column, scale*as[i]/bs[i])
	}
}

// addUsage adds what a process has used between two moments, and its peak.
func (t *table) addUsage(column string, before, after usage, peak, cpu row) {
	t.add(peak, column, float64(after.peakBytes)/(1<<20))
	t.add(cpu, column, (after.cpu - before.cpu).Seconds())
}

// The columns of tables that compare what makes the copy.
const (
	withMakeMirror = "etcdctl make-mirror"
	withHelio      = "helio source + mirror"
)

// The rows that several tables have.
var (
	etcdPeak   = row{"etcd: peak memory, MiB", 0}
	etcdCPU    = row{"etcd: processor, s", 2}
	copierPeak = row{"make-mirror or source node: peak memory, MiB", 0}
	copierCPU  = row{"make-mirror or source node: processor, s", 2}
	copyPeak   = row{"destination etcd or mirror node: peak memory, MiB", 0}
	copyCPU    = row{"destination etcd or mirror node: processor, s", 2}

	etcdMedian = row{"delay put → etcd's watch: median, ms", 2}
	etcdP99    = row{"delay put → etcd's watch: p99, ms", 2}
	putMedian  = row{"delay put → copy's watch: median, ms", 2}
	putP99     = row{"delay put → copy's watch: p99, ms", 2}
	hopMedian  = row{"delay etcd's watch → copy's watch: median, ms", 2}
	hopP99     = row{"delay etcd's watch → copy's watch: p99, ms", 2}
	missing    = row{"puts that the copy's watch did not show in time", 0}
)

// addDelays adds one round's delays.
func (t *table) addDelays(column string, d delays, copied bool) {
	t.add(etcdMedian, column, d.etcd.median())
	t.add(etcdP99, column, d.etcd.quantile(0.99))
	if !copied {
		return
	}
	t.add(putMedian, column, d.copy.median())
	t.add(putP99, column, d.copy.quantile(0.99))
	t.add(hopMedian, column, d.hop.median())
	t.add(hopP99, column, d.hop.quantile(0.99))
	t.add(missing, column, float64(d.missing))
	if d.missing > 0 {
		t.note("A put that did not show within %s of the load's end is counted with the time waited: those delays are lower bounds.", drainWait)
	}
}
