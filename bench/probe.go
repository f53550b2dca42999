package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// probeKey is what a probe puts, with a number as the value.
const probeKey = "bench/probe"

// maxProbes bounds the probes whose put has not been answered.
const maxProbes = 64

// probe measures delays: it puts a numbered value at a fixed pace and notes when
// each arrives at a watch on etcd and at a watch on the copy. All clocks are the
// monotonic one of this process.
type probe struct {
	c    *cell
	put  *clientv3.Client
	etcd *sight
	copy *sight // nil without a copy

	mu   sync.Mutex
	sent []time.Time // when each put began, by its number
}

// newProbe opens the watches; copied is nil if there is no copy to watch.
func newProbe(c *cell, put, etcd, copied *clientv3.Client) *probe {
	c.Helper()
	p := &probe{c: c, put: put, etcd: watchProbe(c, etcd)}
	if copied != nil {
		p.copy = watchProbe(c, copied)
	}
	return p
}

// run puts for that long, and returns when all puts have been answered and etcd's
// own watch has shown them.
func (p *probe) run(window, every time.Duration) {
	p.c.Helper()
	ctx, cancel := context.WithTimeout(p.c.ctx, window)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var puts errgroup.Group
	puts.SetLimit(maxProbes)
	for {
		select {
		case <-ctx.Done():
			if err := puts.Wait(); err != nil {
				p.c.Fatalf("put of a probe: %v", err)
			}
			if !p.wait(p.etcd, startWait) {
				p.c.Fatal("etcd's own watch does not show every probe")
			}
			return
		case <-tick.C:
			puts.Go(p.once)
		}
	}
}

func (p *probe) once() error {
	ctx, cancel := context.WithTimeout(p.c.ctx, startWait)
	defer cancel()
	p.mu.Lock()
	n := len(p.sent)
	p.sent = append(p.sent, time.Now())
	p.mu.Unlock()
	_, err := p.put.Put(ctx, probeKey, strconv.Itoa(n))
	return err
}

// wait reports whether a watch has shown every probe within limit.
func (p *probe) wait(s *sight, limit time.Duration) bool {
	p.c.Helper()
	ok := p.c.until(limit, time.Millisecond, func() bool {
		n, err := s.count()
		if err != nil {
			p.c.Fatal(err)
		}
		return n == len(p.sent)
	})
	return ok
}

// delays are what a probe has measured, in milliseconds.
type delays struct {
	etcd    samples // from the put's start to etcd's watch
	copy    samples // from the put's start to the copy's watch
	hop     samples // from etcd's watch to the copy's watch
	missing int     // not seen at the copy: counted with the time waited so far
}

// delays returns what was measured by now; run must have returned.
func (p *probe) delays() delays {
	now := time.Now()
	var d delays
	for n, sent := range p.sent {
		atEtcd, _ := p.etcd.at(n)
		d.etcd = append(d.etcd, ms(atEtcd.Sub(sent)))
		if p.copy == nil {
			continue
		}
		atCopy, ok := p.copy.at(n)
		if !ok {
			atCopy = now
			d.missing++
		}
		d.copy = append(d.copy, ms(atCopy.Sub(sent)))
		d.hop = append(d.hop, ms(atCopy.Sub(atEtcd)))
	}
	return d
}

// sight is one watch on the probe's key.
type sight struct {
	mu   sync.Mutex
	seen map[int]time.Time
	err  error // why the watch has ended, if it should not have
}

// watchProbe returns when the watch is in place. It ends with the cell.
func watchProbe(c *cell, client *clientv3.Client) *sight {
	c.Helper()
	s := &sight{seen: make(map[int]time.Time)}
	ctx, cancel := context.WithCancel(c.ctx)
	events := client.Watch(ctx, probeKey, clientv3.WithCreatedNotify())
	done := make(chan struct{})
	created := make(chan struct{})
	go func() {
		defer close(done)
		s.follow(ctx, events, created)
	}()
	c.Cleanup(func() { cancel(); <-done })
	select {
	case <-created:
	case <-done:
		_, err := s.count()
		c.Fatalf("watch for the probes: %v", err)
	case <-time.After(startWait):
		c.Fatal("watch for the probes: not created in time")
	}
	return s
}

// follow notes what arrives until the watch ends, and closes created when the
// server has confirmed it.
func (s *sight) follow(ctx context.Context, events clientv3.WatchChan, created chan<- struct{}) {
	err := errors.New("the watch was closed")
	for resp := range events {
		now := time.Now()
		if resp.Created {
			close(created)
			continue
		}
		if err = resp.Err(); err != nil {
			break
		}
		err = errors.New("the watch was closed")
		if bad := s.note(resp.Events, now); bad != nil {
			err = bad
			break
		}
	}
	if ctx.Err() == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = fmt.Errorf("watch for the probes: %w", err)
	}
}

func (s *sight) note(events []*clientv3.Event, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		n, err := strconv.Atoi(string(e.Kv.Value))
		if err != nil {
			return err
		}
		if _, twice := s.seen[n]; twice {
			return fmt.Errorf("probe %d arrived twice", n)
		}
		s.seen[n] = now
	}
	return nil
}

func (s *sight) count() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen), s.err
}

func (s *sight) at(n int) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.seen[n]
	return t, ok
}
