package bench

import (
	"testing"
	"time"
)

func TestProbeMeasuresDelays(t *testing.T) {
	inCell(t, func(c *cell) {
		etcd := startEtcd(c, options{})
		client := etcd.Client(c)
		p := newProbe(c, client, etcd.Client(c), etcd.Client(c)) // etcd as its own copy
		p.run(300*time.Millisecond, 10*time.Millisecond)
		if !p.wait(p.copy, startWait) {
			t.Fatal("the copy's watch does not show every probe")
		}
		d := p.delays()
		if d.missing != 0 || len(d.copy) < 5 || len(d.copy) != len(d.etcd) || len(d.hop) != len(d.etcd) {
			t.Fatalf("delays %+v", d)
		}
		if d.etcd.median() <= 0 || d.copy.median() <= 0 {
			t.Errorf("medians %v and %v", d.etcd.median(), d.copy.median())
		}
		// A probe that does not arrive counts as missing, with the time waited.
		p.copy.mu.Lock()
		delete(p.copy.seen, 0)
		p.copy.mu.Unlock()
		if d := p.delays(); d.missing != 1 || d.copy[0] < d.etcd[0] {
			t.Errorf("delays without the first arrival: %+v", d)
		}
	})
}
