package store

import (
	"context"
	"fmt"
	"hash/crc32"

	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/heliograph/heliograph"
)

// HashAt returns the hash at rev as an etcd gives it whose compaction revision is
// compacted (0: never compacted). So a replica that keeps more history than its
// source can be compared with it. Such a hash takes longer and holds nothing back.
// The errors are those of HashKV; a replica that is compacted further than
// compacted cannot tell, which is heliograph.ErrCompacted.
func (s *Store) HashAt(ctx context.Context, rev, compacted int64) (uint32, error) {
	// At its own compaction revision, the store has the hash from before that
	// compaction if it made it since it was opened; etcd answers with its own.
	if have := s.Compacted(); have == compacted || have == rev {
		h, err := s.HashKV(ctx, rev)
		if err != nil || h.HashRevision == rev && max(0, h.CompactRevision) == compacted {
			return h.Hash, err
		}
	}
	return s.hashAs(ctx, rev, compacted)
}

func (s *Store) hashAs(ctx context.Context, rev, compacted int64) (sum uint32, err error) {
	if rev <= compacted {
		return 0, fmt.Errorf("hash at revision %d as of a compaction at %d: %w", rev, compacted, heliograph.ErrCompacted)
	}
	err = s.hash(ctx, func(c *contents) error {
		read := c.epoch.kv.Read(mvcc.ConcurrentReadTxMode, traceutil.TODO())
		defer read.End()
		scan := c.be.ConcurrentReadTx()
		scan.RLock()
		defer scan.RUnlock()
		h, err := newHasher(ctx, read, rev, compacted)
		if err != nil {
			return err
		}
		if sum, err = h.sum(scan); err != nil {
			return err
		}
		if have := c.compacted.Load(); have > compacted {
			return fmt.Errorf("%w (at %d)", heliograph.ErrCompacted, have)
		}
		return nil
	})
	return sum, hashError(rev, err)
}

// hasher computes etcd's HashKV of a history as if it were compacted further than
// it is. What etcd hashes is: every record above the compaction revision, up to
// rev; and below it those that are current at rev, or, if nothing is, those that
// were current at the compaction revision.
type hasher struct {
	ctx            context.Context
	read           mvcc.TxnRead
	rev, compacted int64
	current        int64 // where a record below compacted must be current
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newHasher(ctx context.Context, read mvcc.TxnRead, rev, compacted int64) (*hasher, error) {
	h := &hasher{ctx: ctx, read: read, rev: rev, compacted: compacted, current: rev}
	r, err := read.Range(ctx, []byte{0}, []byte{}, mvcc.RangeOptions{Rev: rev, Limit: 1, FastKeysOnly: true})
	if err != nil {
		return nil, err
	}
	if len(r.KVs) == 0 && compacted > 0 {
		h.current = compacted
	}
	return h, nil
}

func (h *hasher) sum(scan backend.ReadTx) (uint32, error) {
	sum, n := crc32.Update(0, castagnoli, schema.Key.Name()), 0
	err := scan.UnsafeForEach(schema.Key, func(k, v []byte) error {
		if n++; n%historyChunk == 0 && h.ctx.Err() != nil {
			return context.Cause(h.ctx)
		}
		ok, err := h.hashes(k, v)
		if ok {
			sum = crc32.Update(crc32.Update(sum, castagnoli, k), castagnoli, v)
		}
		return err
	})
	return sum, err
}

// hashes reports whether the record is hashed.
func (h *hasher) hashes(k, v []byte) (bool, error) {
	rk, err := heliograph.ParseRevisionKey(k)
	switch {
	case err != nil || rk.Main > h.rev:
		return false, err
	case rk.Main > h.compacted || len(v) == 0: // see isBump
		return true, nil
	case rk.Delete:
		return false, nil
	}
	kv, err := decodeKeyValue(v)
	if err != nil {
		return false, err
	}
	r, err := h.read.Range(h.ctx, kv.key, nil, mvcc.RangeOptions{Rev: h.current, FastKeysOnly: true})
	return err == nil && len(r.KVs) == 1 && r.KVs[0].ModRevision == rk.Main, err
}
