package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Conditions of the fan-out.
const (
	watchers    = 1000
	fanOutEvery = 50 * time.Millisecond
	fanOutKey   = "bench/fan-out"
)

var (
	fanOutMedian     = row{"delay put → one of 1,000 watches: median, ms", 2}
	fanOutP99        = row{"delay put → one of 1,000 watches: p99, ms", 2}
	fanOutLastMedian = row{"delay put → the last of 1,000 watches: median, ms", 2}
	fanOutLastP99    = row{"delay put → the last of 1,000 watches: p99, ms", 2}
	fanOutCPU        = row{"etcd or mirror node: processor, s", 2}
)

func fanOutTable() *table {
	return newTable("1,000 watches of one key", []string{fromEtcd, fromMirror},
		[]row{fanOutMedian, fanOutP99, fanOutLastMedian, fanOutLastP99, fanOutCPU})
}

// BenchmarkFanOut puts one key at etcd every 50 ms while 1,000 watches wait for it:
// at etcd itself, then at a mirror. Delays count from the start of the put.
func BenchmarkFanOut(b *testing.B) {
	o := readOptions(b)
	t := fanOutTable()
	facts := conditions(b, o)
	inCell(b, func(outer *cell) {
		etcd := startEtcd(outer, o)
		client := etcd.Client(outer)
		r := newHelio(outer, etcd)
		r.follow(client)
		rounds(b, o, []variant{
			{fromEtcd, func(c *cell) { t.fanOut(c, o, fromEtcd, client, etcd.Endpoints(), etcd.Member(0).PID()) }},
			{fromMirror, func(c *cell) { t.fanOut(c, o, fromMirror, client, r.client.Endpoints(), r.copy.PID()) }},
		})
	})
	show(b, facts, t)
	for _, column := range []string{fromEtcd, fromMirror} {
		b.ReportMetric(t.get(fanOutMedian, column).median(), column+"-median-ms")
		b.ReportMetric(t.get(fanOutLastMedian, column).median(), column+"-last-median-ms")
	}
}

// shown is one event at one watch.
type shown struct {
	n  int // of the put
	at time.Time
}

// fanOut measures one column once.
func (t *table) fanOut(c *cell, o options, column string, put *clientv3.Client, endpoints []string, pid int) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, o.window+2*startWait)
	defer cancel()
	events := watchFanOut(ctx, c, endpoints)
	before := usageOf(c, pid)
	tick := time.NewTicker(fanOutEvery)
	defer tick.Stop()
	var all, last samples
	for n := range max(1, int(o.window/fanOutEvery)) {
		<-tick.C
		begin := time.Now()
		if _, err := put.Put(ctx, fanOutKey, strconv.Itoa(n)); err != nil {
			c.Fatal(err)
		}
		latest := time.Duration(0)
		for range watchers {
			select {
			case s := <-events:
				if s.n != n {
					c.Fatalf("a watch shows put %d during put %d", s.n, n)
				}
				latest = max(latest, s.at.Sub(begin))
				all = append(all, ms(s.at.Sub(begin)))
			case <-ctx.Done():
				c.Fatalf("put %d was not shown to every watch", n)
			}
		}
		last = append(last, ms(latest))
	}
	t.add(fanOutCPU, column, (usageOf(c, pid).cpu - before.cpu).Seconds())
	t.add(fanOutMedian, column, all.median())
	t.add(fanOutP99, column, all.quantile(0.99))
	t.add(fanOutLastMedian, column, last.median())
	t.add(fanOutLastP99, column, last.quantile(0.99))
}

// watchFanOut returns when all watches are in place. Each event of each of them
// comes through the channel; -1 stands for one that cannot be right. The watches
// end with the cell.
func watchFanOut(ctx context.Context, c *cell, endpoints []string) <-chan shown {
	c.Helper()
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan shown, watchers) // those of one put
	ended := make(chan struct{}, watchers)
	created := make(chan error, watchers)
	clients := clientsOf(c, endpoints)
	for i := range watchers {
		w := clients[i%len(clients)].Watch(ctx, fanOutKey, clientv3.WithCreatedNotify())
		go func() {
			defer func() { ended <- struct{}{} }()
			resp := <-w
			if !resp.Created {
				created <- fmt.Errorf("not created: %w", resp.Err())
				return
			}
			created <- nil
			for resp := range w {
				at := time.Now()
				for _, ev := range resp.Events {
					n, err := strconv.Atoi(string(ev.Kv.Value))
					if err != nil {
						n = -1
					}
					select {
					case events <- shown{n, at}:
					case <-ctx.Done():
						return
					}
				}
			}
		}()
	}
	c.Cleanup(func() {
		cancel()
		for range watchers {
			<-ended
		}
	})
	var errs []error
	for range watchers {
		errs = append(errs, <-created)
	}
	if err := errors.Join(errs...); err != nil {
		c.Fatal(err)
	}
	return events
}
