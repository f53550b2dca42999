package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// The columns of tables that compare what answers clients.
const (
	fromEtcd   = "etcd"
	fromMirror = "mirror"
)

// readers is how many reads are under way at once, over how many connections.
const (
	readers     = 64
	connections = 8
)

// readRows are the figures of one kind of read.
type readRows struct{ rate, share, median, p99 row }

func newReadRows(kind string) readRows {
	return readRows{
		rate:   row{kind + ": reads/s", 0},
		share:  row{kind + ": reads/s, % of etcd in the same round", 1},
		median: row{kind + ": median, ms", 2},
		p99:    row{kind + ": p99, ms", 2},
	}
}

func (r readRows) all() []row { return []row{r.rate, r.share, r.median, r.p99} }

var (
	serializableReads = newReadRows("serializable")
	linearizableReads = newReadRows("linearizable")
	serverCPU         = row{"etcd or mirror node: processor per serializable read, µs", 1}
)

func readsTable() *table {
	return newTable("Reads by 64 clients", []string{fromEtcd, fromMirror},
		slices.Concat(serializableReads.all(), linearizableReads.all(), []row{serverCPU}))
}

// BenchmarkReads gets single random keys with 64 readers: from etcd, then from a
// mirror of it that follows while nothing is written. A linearizable read on the
// mirror costs a round trip to etcd by way of the source node, which reads that
// are under way at the same time share.
func BenchmarkReads(b *testing.B) {
	o := readOptions(b)
	t := readsTable()
	facts := conditions(b, o)
	inCell(b, func(outer *cell) {
		etcd := startEtcd(outer, o)
		revision := fill(outer, etcd.Client(outer), o.keys)
		r := newHelio(outer, etcd)
		firstCopy(outer, r, revision)
		r.prove(revision)
		measure := func(column string, endpoints []string, pid int) func(*cell) {
			return func(c *cell) {
				clients := clientsOf(c, endpoints)
				before := usageOf(c, pid)
				n := t.reads(c, o, column, serializableReads, clients, clientv3.WithSerializable())
				t.add(serverCPU, column, float64((usageOf(c, pid).cpu-before.cpu).Microseconds())/float64(n))
				t.reads(c, o, column, linearizableReads, clients)
			}
		}
		rounds(b, o, []variant{
			{fromEtcd, measure(fromEtcd, etcd.Endpoints(), etcd.Member(0).PID())},
			{fromMirror, measure(fromMirror, r.client.Endpoints(), r.copy.PID())},
		})
	})
	for _, rows := range []readRows{serializableReads, linearizableReads} {
		t.addRatios(rows.share, fromMirror, rows.rate, fromMirror, fromEtcd, 100)
	}
	show(b, facts, t)
	for _, column := range []string{fromEtcd, fromMirror} {
		b.ReportMetric(t.get(serializableReads.rate, column).median(), column+"-serializable/s")
		b.ReportMetric(t.get(linearizableReads.rate, column).median(), column+"-linearizable/s")
	}
}

// reads measures one kind of read for the window, after a warm-up, and returns how
// many reads there were in all.
func (t *table) reads(c *cell, o options, column string, rows readRows, clients []*clientv3.Client, opts ...clientv3.OpOption) int {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, warmUp+o.window)
	defer cancel()
	counted := time.Now().Add(warmUp)
	var (
		g      errgroup.Group
		delays [readers]samples
		early  [readers]int
	)
	for i := range readers {
		client, rng := clients[i%len(clients)], rand.New(rand.NewPCG(uint64(i), 0))
		g.Go(func() error {
			for ctx.Err() == nil {
				begin := time.Now()
				// What is begun is ended, so that no read is cut off.
				resp, err := client.Get(context.WithoutCancel(ctx), fillKey(rng.IntN(o.keys)), opts...)
				if err != nil {
					return err
				}
				if len(resp.Kvs) != 1 || len(resp.Kvs[0].Value) != valueBytes {
					return fmt.Errorf("a read found %d keys", len(resp.Kvs))
				}
				if begin.Before(counted) {
					early[i]++
				} else {
					delays[i] = append(delays[i], ms(time.Since(begin)))
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		c.Fatalf("read from %s: %v", column, err)
	}
	took := time.Since(counted)
	all := slices.Concat(delays[:]...)
	t.add(rows.rate, column, float64(len(all))/took.Seconds())
	t.add(rows.median, column, all.median())
	t.add(rows.p99, column, all.quantile(0.99))
	n := len(all)
	for _, e := range early {
		n += e
	}
	return n
}

// clientsOf returns clients with a connection each, which end with the cell.
func clientsOf(c *cell, endpoints []string) []*clientv3.Client {
	c.Helper()
	var clients []*clientv3.Client
	for range connections {
		client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: startWait, Logger: zap.NewNop()})
		if err != nil {
			c.Fatal(err)
		}
		c.Cleanup(func() { client.Close() })
		clients = append(clients, client)
	}
	return clients
}
