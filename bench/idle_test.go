package bench

import (
	"testing"
)

func idleTable() *table {
	return newTable("Delay at 100 puts/s", []string{withMakeMirror, withHelio},
		[]row{etcdMedian, etcdP99, putMedian, putP99, hopMedian, hopP99, missing,
			etcdCPU, copierCPU, copyCPU})
}

// BenchmarkDelayIdle measures the delay when there is nothing but the probe, every
// 10 ms.
func BenchmarkDelayIdle(b *testing.B) {
	o := readOptions(b)
	t := idleTable()
	facts := conditions(b, o)
	rounds(b, o, []variant{
		{withMakeMirror, func(c *cell) { t.idle(c, o, withMakeMirror, makeMirrorOf(c, o)) }},
		{withHelio, func(c *cell) { t.idle(c, o, withHelio, helioOf(c)) }},
	})
	show(b, facts, t)
	b.ReportMetric(t.get(putMedian, withMakeMirror).median(), "make-mirror-delay-ms")
	b.ReportMetric(t.get(putMedian, withHelio).median(), "helio-delay-ms")
}

func (t *table) idle(c *cell, o options, column string, copied copyOf) {
	c.Helper()
	etcd := startEtcd(c, o)
	client := etcd.Client(c)
	r := copied(etcd)
	r.follow(client)
	p := newProbe(c, client, etcd.Client(c), r.client)
	pids := [...]int{etcd.Member(0).PID(), r.copier.PID(), r.copy.PID()}
	var before [len(pids)]usage
	for i, pid := range pids {
		before[i] = usageOf(c, pid)
	}
	p.run(o.window, idleEvery)
	for i, cpu := range [...]row{etcdCPU, copierCPU, copyCPU} {
		t.add(cpu, column, (usageOf(c, pids[i]).cpu - before[i].cpu).Seconds())
	}
	if !p.wait(p.copy, drainWait) && r.exact {
		c.Fatal("the mirror's watch does not show every probe")
	}
	t.addDelays(column, p.delays(), true)
}
