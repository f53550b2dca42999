package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/heliotest"
)

// Sizes of a history.
const (
	registers     = 4
	historyLength = 3 * time.Second
	historyWrites = 200 // that it must hold at least, to prove anything
	historyReads  = 200
)

// revisions are the revisions at which each register was last written; 0: never.
// They stand for the values, which are never twice the same.
type revisions [registers]int64

// written is a put of one register, with the revision that etcd gave it.
type written struct {
	register int
	rev      int64
}

// registersModel is what etcd is to a client: registers that are written one
// after the other, in the order of their revisions, and read all at once.
var registersModel = porcupine.Model{
	Init: func() any { return revisions{} },
	Step: func(state, input, output any) (bool, any) {
		s := state.(revisions)
		w, ok := input.(written)
		if !ok {
			return output.(revisions) == s, s
		}
		for _, rev := range s {
			if rev >= w.rev {
				return false, s
			}
		}
		s[w.register] = w.rev
		return true, s
	},
	DescribeOperation: func(input, output any) string {
		if w, ok := input.(written); ok {
			return fmt.Sprintf("put %d at %d", w.register, w.rev)
		}
		return fmt.Sprint("get ", output)
	},
}

// history records operations of concurrent clients.
type history struct {
	prefix string // of the registers' keys
	start  time.Time

	mu     sync.Mutex
	ops    []porcupine.Operation
	writes int
	failed int // reads that were not answered: they tell nothing
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

func (h *history) add(client int, input any, call int64, output any) {
	op := porcupine.Operation{ClientId: client, Input: input, Call: call, Output: output, Return: h.now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	if _, ok := input.(written); ok {
		h.writes++
	}
}

// write puts to a register until ctx ends. What it has begun it ends, because a
// put without an answer may happen at any later time.
func (h *history) write(ctx context.Context, client int, etcd *clientv3.Client) error {
	for n := 0; ctx.Err() == nil; n++ {
		register := (client + n) % registers
		call := h.now()
		resp, err := etcd.Put(context.WithoutCancel(ctx), fmt.Sprint(h.prefix, register), "")
		if err != nil {
			return err
		}
		h.add(client, written{register, resp.Header.Revision}, call, nil)
	}
	return nil
}

// read reads all registers until ctx ends, as a client does by default.
func (h *history) read(ctx context.Context, client int, mirror *clientv3.Client) error {
	for ctx.Err() == nil {
		call := h.now()
		resp, err := mirror.Get(context.WithoutCancel(ctx), h.prefix, clientv3.WithPrefix())
		if err != nil {
			h.mu.Lock()
			h.failed++
			h.mu.Unlock()
			continue
		}
		var got revisions
		for _, kv := range resp.Kvs {
			var register int
			if _, err := fmt.Sscan(strings.TrimPrefix(string(kv.Key), h.prefix), &register); err != nil {
				return err
			}
			got[register] = kv.ModRevision
		}
		h.add(client, nil, call, got)
	}
	return nil
}

// Clients write to etcd and read from two mirrors while the node between is
// stopped again and again, so that the mirrors are behind for moments. What all
// of them saw together must be explained by one order of their calls; and with
// a mirror that does not wait for the read index, the same check must fail.
func TestLinearizableReads(t *testing.T) {
	const wait, noWait = "err := s.rounds.wait(patient, s.base)", "err := patient.Err()"
	etcd := etcdtest.Start(t, etcdtest.Options{})
	pki := heliotest.NewPKI(t)
	source := pki.Source("prod-us", etcd.Endpoints())
	for _, test := range []struct {
		name   string
		binary func(testing.TB) string
		want   porcupine.CheckResult
	}{
		{"as built", heliotest.Binary, porcupine.Ok},
		{"planted bug", func(tb testing.TB) string {
			return heliotest.Mutant(tb, "readapi/freshness.go", wait, noWait)
		}, porcupine.Illegal},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := pki.With(t, test.binary(t))
			mirrors := []*heliotest.Node{nodes.Mirror("prod-eu", source, false), nodes.Mirror("prod-asia", source, false)}
			for _, m := range mirrors {
				m.WaitFollowing()
			}
			h := record(t, etcd, source, mirrors)
			got := porcupine.CheckOperationsTimeout(registersModel, h.ops, time.Minute)
			t.Logf("%d writes, %d reads, %d not answered: %s", h.writes, len(h.ops)-h.writes, h.failed, got)
			if got != test.want {
				t.Errorf("the history is %s, want %s", got, test.want)
			}
			if reads := len(h.ops) - h.writes; h.writes < historyWrites || reads < historyReads {
				t.Errorf("%d writes and %d reads: too few to prove anything", h.writes, reads)
			}
		})
	}
}

// record runs the clients of one history.
func record(t *testing.T, etcd *etcdtest.Cluster, source *heliotest.Node, mirrors []*heliotest.Node) *history {
	t.Helper()
	const writers, readersEach = 3, 3
	// A prefix of its own, so that all registers begin unwritten.
	h := &history{prefix: fmt.Sprintf("register/%d/", etcd.Revision(t)), start: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), historyLength)
	defer cancel()
	var g errgroup.Group
	clients := 0
	begin := func(run func(context.Context, int, *clientv3.Client) error, c *clientv3.Client) {
		id := clients
		clients++
		g.Go(func() error { return run(ctx, id, c) })
	}
	for range writers {
		begin(h.write, etcd.Client(t))
	}
	for _, m := range mirrors {
		for range readersEach {
			begin(h.read, m.Client())
		}
	}
	tick := time.NewTicker(100 * time.Millisecond) // the rhythm of the fault, not a wait for something
	defer tick.Stop()
	for ctx.Err() == nil {
		source.Pause()
		<-tick.C
		source.Resume()
		<-tick.C
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return h
}
