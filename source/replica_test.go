package source_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

var origin = heliograph.Origin{Cluster: "prod-us", Database: "default", EtcdID: 0xabcdef}

// memory is a replica in memory: real records, no files. revs[i] is revision
// i+1.
type memory struct {
	mu       sync.Mutex
	revs     [][]heliograph.Record
	floor    int64
	gen      int64
	lineage  heliograph.Lineage
	changed  chan struct{}
	visits   int           // History calls
	blob     int           // bytes of a snapshot
	pinned   int           // snapshots in use
	made     int           // snapshots made
	slow     chan struct{} // a snapshot is made only when this is closed; nil at once
	failWith error         // of History
	leases   leases
	auth     *wire.Heartbeat // what it says of access control; nil: not known
}

// leases are changes, of which a place in the list is the number.
type leases []heliograph.LeaseChange

func (m *memory) LeasesSince(seq uint64) (heliograph.LeaseChange, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seq == uint64(len(m.leases)) {
		return heliograph.LeaseChange{}, seq
	}
	return m.leases[seq], seq + 1
}

func (m *memory) Auth() (enabled bool, revision uint64, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.auth == nil {
		return false, 0, false
	}
	return m.auth.AuthEnabled, m.auth.AuthRevision, true
}

func newMemory(revs int) *memory {
	m := &memory{lineage: heliograph.Lineage{Origin: origin}, changed: make(chan struct{}), blob: 600 << 10}
	for range revs {
		m.put(1, 100)
	}
	return m
}

// put adds a revision of some records, each with a value of so many bytes.
func (m *memory) put(records, valueBytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rev := int64(len(m.revs) + 1)
	var list []heliograph.Record
	for sub := range records {
		value, err := proto.Marshal(&mvccpb.KeyValue{
			Key: fmt.Appendf(nil, "k%d-%d", rev, sub), Value: noise(rev<<20|int64(sub), valueBytes),
			CreateRevision: rev, ModRevision: rev, Version: 1,
		})
		if err != nil {
			panic(err)
		}
		list = append(list, heliograph.Record{Key: heliograph.RevisionKey{Main: rev, Sub: int64(sub)}.Append(nil), Value: value})
	}
	m.revs = append(m.revs, list)
	m.changeLocked()
}

// noise returns bytes that do not compress, the same for the same seed.
func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	var s [32]byte
	binary.BigEndian.PutUint64(s[:], uint64(seed))
	_, _ = rand.NewChaCha8(s).Read(b)
	return b
}

func (m *memory) compact(rev int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.floor = rev
	m.changeLocked()
}

// replace stands for a snapshot that replaced the contents.
func (m *memory) replace() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gen++
	m.changeLocked()
}

// adopt stands for the adoption of a promoted cluster's history.
func (m *memory) adopt(l heliograph.Lineage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lineage = l
	m.gen++
	m.changeLocked()
}

func (m *memory) changeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// batch returns a revision for comparison.
func (m *memory) batch(rev int64) []heliograph.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revs[rev-1]
}

func locked[T any](m *memory, get func() T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return get()
}

func (m *memory) Lineage() heliograph.Lineage {
	return locked(m, func() heliograph.Lineage { return m.lineage })
}
func (m *memory) Applied() int64    { return locked(m, func() int64 { return int64(len(m.revs)) }) }
func (m *memory) Compacted() int64  { return locked(m, func() int64 { return m.floor }) }
func (m *memory) Floor() int64      { return m.Compacted() }
func (m *memory) Generation() int64 { return locked(m, func() int64 { return m.gen }) }
func (m *memory) Changed() <-chan struct{} {
	return locked(m, func() chan struct{} { return m.changed })
}

func (m *memory) History(from int64, maxBytes int, visit func(key, value []byte) error) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.visits++
	switch {
	case m.failWith != nil:
		return from - 1, m.failWith
	case from <= m.floor:
		return from - 1, heliograph.ErrCompacted
	case from > int64(len(m.revs))+1:
		return from - 1, heliograph.ErrFutureRevision
	}
	last := from - 1
	for passed := 0; last < int64(len(m.revs)) && (passed < maxBytes || last < from); last++ {
		for _, r := range m.revs[last] {
			if err := visit(r.Key, r.Value); err != nil {
				return from - 1, fmt.Errorf("visit: %w", err)
			}
			passed += len(r.Key) + len(r.Value)
		}
	}
	return last, nil
}

func (m *memory) Snapshot(ctx context.Context) (heliograph.Snapshot, error) {
	if slow := locked(m, func() chan struct{} { return m.slow }); slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pinned++
	m.made++
	data := make([]byte, m.blob)
	copy(data, noise(1, m.blob))
	clear(data[len(data)/4 : len(data)/2]) // some of it compresses
	return &memorySnapshot{Reader: bytes.NewReader(data), of: m, rev: int64(len(m.revs)), sum: sha256.Sum256(data)}, nil
}

type memorySnapshot struct {
	*bytes.Reader
	of   *memory
	rev  int64
	sum  [32]byte
	once sync.Once
}

func (s *memorySnapshot) Rev() int64       { return s.rev }
func (s *memorySnapshot) Size() int64      { return s.Reader.Size() }
func (s *memorySnapshot) SHA256() [32]byte { return s.sum }
func (s *memorySnapshot) Release() {
	s.once.Do(func() {
		s.of.mu.Lock()
		defer s.of.mu.Unlock()
		s.of.pinned--
	})
}
