package bench

import (
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph/internal/etcdtest"
)

// The columns of following: on shared cores everything competes with everything;
// on own cores etcd and its writers have one half of the machine to themselves
// and the nodes have the other.
const (
	sharedAlone      = "etcd alone"
	sharedMakeMirror = "+ make-mirror"
	sharedHelio      = "+ helio"
	ownAlone         = "own cores: etcd alone"
	ownHelio         = "own cores: + helio"
)

// The rows of following.
var (
	writeRate  = row{"etcd: writes/s", 0}
	writeShare = row{"etcd: writes/s, % of alone in the same round", 1}
	applyRate  = row{"copy: revisions/s applied during the load", 0}
	behind     = row{"copy: revisions behind when the load ends", 0}
	drained    = row{"copy: time until none is behind, ms", 0}
	writersCPU = row{"writers: processor, s", 2}
	othersCPU  = row{"everything else on the machine: processor, s", 2}
)

func followTable() *table {
	return newTable("Following 64 writers",
		[]string{sharedAlone, sharedMakeMirror, sharedHelio, ownAlone, ownHelio},
		[]row{writeRate, writeShare, applyRate, behind, drained,
			etcdMedian, etcdP99, putMedian, putP99, hopMedian, hopP99, missing,
			etcdPeak, etcdCPU, copierPeak, copierCPU, copyPeak, copyCPU, writersCPU, othersCPU})
}

// BenchmarkFollow puts at etcd's full rate: alone, with make-mirror, and with a
// source node and a mirror. A probe every 20 ms measures the delay. The variants
// on own cores tell what mirroring costs the etcd from what it costs the machine
// that all of them share here.
func BenchmarkFollow(b *testing.B) {
	o := readOptions(b)
	t := followTable()
	facts := conditions(b, o)
	variants := []variant{
		{sharedAlone, func(c *cell) { t.follow(c, o, sharedAlone, nil, nil) }},
		{sharedMakeMirror, func(c *cell) { t.follow(c, o, sharedMakeMirror, nil, makeMirrorOf(c, o)) }},
		{sharedHelio, func(c *cell) { t.follow(c, o, sharedHelio, nil, helioOf(c)) }},
	}
	if cores, ok := splitCores(b); ok {
		variants = append(variants,
			variant{ownAlone, func(c *cell) { t.follow(c, o, ownAlone, &cores, nil) }},
			variant{ownHelio, func(c *cell) { t.follow(c, o, ownHelio, &cores, helioOf(c)) }})
		t.note("Own cores: %d for etcd and its writers, %d for the nodes.", cores.etcd.Count(), cores.nodes.Count())
	} else {
		t.note("Own cores: skipped, because this machine lets the benchmark use one core only.")
	}
	rounds(b, o, variants)
	for _, pair := range [][2]string{{sharedMakeMirror, sharedAlone}, {sharedHelio, sharedAlone}, {ownHelio, ownAlone}} {
		t.addRatios(writeShare, pair[0], writeRate, pair[0], pair[1], 100)
	}
	t.note("Equal, checked at the end of each load: HashKV of both helio nodes.")
	show(b, facts, t)
	b.ReportMetric(t.get(writeRate, sharedAlone).median(), "etcd-writes/s")
	b.ReportMetric(t.get(writeRate, sharedHelio).median(), "helio-writes/s")
	b.ReportMetric(t.get(applyRate, sharedHelio).median(), "helio-applied/s")
	b.ReportMetric(t.get(applyRate, sharedMakeMirror).median(), "make-mirror-applied/s")
	b.ReportMetric(t.get(putMedian, sharedHelio).median(), "helio-delay-ms")
	b.ReportMetric(t.get(writeShare, sharedHelio).median(), "shared-cores-%-of-alone")
	if own := t.get(writeShare, ownHelio); len(own) > 0 {
		b.ReportMetric(own.median(), "own-cores-%-of-alone")
	}
}

// copyOf makes the copy of an etcd; it runs once its start is called.
type copyOf func(*etcdtest.Cluster) *replica

func makeMirrorOf(c *cell, o options) copyOf {
	return func(etcd *etcdtest.Cluster) *replica { return newMakeMirror(c, etcd, o) }
}

func helioOf(c *cell) copyOf {
	return func(etcd *etcdtest.Cluster) *replica { return newHelio(c, etcd) }
}

// follow measures one column once. Without own cores, everything shares all of
// them; without a copy, etcd is alone.
func (t *table) follow(c *cell, o options, column string, own *cores, copied copyOf) {
	c.Helper()
	l := startLoaded(c, o, own, copied)
	c.hold(warmUp)
	before := l.mark()
	l.probe.run(o.window, probeEvery)
	after := l.mark()
	if n := l.load.Failed(); n > 0 {
		c.Fatalf("%d writes failed", n)
	}
	l.load.Stop()

	seconds := after.at.Sub(before.at).Seconds()
	t.add(writeRate, column, float64(after.written-before.written)/seconds)
	t.addUsage(column, before.etcd, after.etcd, etcdPeak, etcdCPU)
	t.add(writersCPU, column, (after.writers.cpu - before.writers.cpu).Seconds())
	t.add(othersCPU, column, (after.others() - before.others()).Seconds())
	if l.replica != nil {
		t.add(applyRate, column, float64(after.applied-before.applied)/after.appliedAt.Sub(before.appliedAt).Seconds())
		t.addUsage(column, before.copier, after.copier, copierPeak, copierCPU)
		t.addUsage(column, before.copy, after.copy, copyPeak, copyCPU)
		t.addDrain(column, l)
	}
	t.addDelays(column, l.probe.delays(), l.replica != nil)
}

// addDrain waits for what the copy owes. Helio must deliver all of it, and be
// equal; make-mirror gets a bounded time.
func (t *table) addDrain(column string, l *loaded) {
	c, r := l.c, l.replica
	c.Helper()
	stopped := time.Now()
	applied := r.mustApplied()
	head := l.etcd.Revision(c)
	t.add(behind, column, float64(head-applied))
	limit := startWait
	if !r.exact {
		limit = drainWait
	}
	if r.reached(head, limit) {
		t.add(drained, column, ms(time.Since(stopped)))
	} else {
		t.note("%s: still behind %s after the load's end.", column, limit)
	}
	seen := l.probe.wait(l.probe.copy, max(time.Second, limit-time.Since(stopped)))
	if !r.exact {
		return
	}
	if !seen {
		c.Fatal("the mirror's watch does not show every probe")
	}
	r.prove(head)
}

// loaded is an etcd under load, with or without a copy.
type loaded struct {
	c       *cell
	etcd    *etcdtest.Cluster
	replica *replica // nil if etcd is alone
	probe   *probe
	load    *etcdtest.Load
}

func startLoaded(c *cell, o options, own *cores, copied copyOf) *loaded {
	c.Helper()
	if own != nil {
		c.Cleanup(func() { c.pin(&own.all) })
		c.pin(&own.etcd)
	}
	l := &loaded{c: c, etcd: startEtcd(c, o)}
	client := l.etcd.Client(c)
	var read *clientv3.Client
	if copied != nil {
		if own != nil {
			c.pin(&own.nodes) // what starts from here on inherits it
		}
		l.replica = copied(l.etcd)
		l.replica.follow(client)
		read = l.replica.client
	}
	if own != nil {
		c.pin(&own.etcd)
		l.requirePinned(own)
	}
	l.probe = newProbe(c, l.etcd.Client(c), l.etcd.Client(c), read)
	l.load = etcdtest.StartLoad(c, client, etcdtest.LoadOptions{Workers: writers, ValueSize: valueBytes})
	return l
}

// pin moves this process, and so what it starts from then on.
func (c *cell) pin(set *unix.CPUSet) {
	c.Helper()
	if err := pin(set); err != nil {
		c.Fatal(err)
	}
}

// requirePinned fails the benchmark unless every process is on its own cores.
func (l *loaded) requirePinned(own *cores) {
	l.c.Helper()
	where := map[int]*unix.CPUSet{os.Getpid(): &own.etcd, l.etcd.Member(0).PID(): &own.etcd}
	if l.replica != nil {
		where[l.replica.copier.PID()], where[l.replica.copy.PID()] = &own.nodes, &own.nodes
	}
	for pid, set := range where {
		if err := pinned(pid, set); err != nil {
			l.c.Fatal(err)
		}
	}
}

// mark is how far everything is at one moment of a load. The copy's answer may
// take a while, and so has its own time.
type mark struct {
	at, appliedAt               time.Time
	written, applied            int64
	etcd, copier, copy, writers usage
	machine                     time.Duration // processor time of everything
}

// others is the processor time of what is not part of the benchmark.
func (m mark) others() time.Duration {
	return m.machine - m.etcd.cpu - m.copier.cpu - m.copy.cpu - m.writers.cpu
}

func (l *loaded) mark() mark {
	l.c.Helper()
	m := mark{
		etcd: usageOf(l.c, l.etcd.Member(0).PID()), writers: usageOf(l.c, os.Getpid()),
		machine: machineCPU(l.c),
	}
	if l.replica != nil {
		m.copier, m.copy = usageOf(l.c, l.replica.copier.PID()), usageOf(l.c, l.replica.copy.PID())
		m.applied, m.appliedAt = l.replica.mustApplied(), time.Now()
	}
	m.written, m.at = l.load.Written(), time.Now()
	return m
}
