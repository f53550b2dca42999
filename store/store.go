package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/zaplog"
)

// Store is one database's replica. Its methods may be called from any
// goroutine, except that Apply and ReceiveSnapshot are one goroutine's, as
// heliograph.Replica says.
type Store struct {
	cfg     Config
	log     *slog.Logger
	zap     *zap.Logger
	lock    *fileutil.LockedFile
	lessor  *lessor
	metrics *metrics

	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // committer, keeper, spools, closing of old contents

	cur        atomic.Pointer[contents] // nil before the first snapshot
	generation atomic.Int64
	dirty      atomic.Int64                             // bytes applied and not yet committed
	auth       atomic.Pointer[heliograph.AccessControl] // nil while not known

	kick    chan struct{} // capacity 1: the keeper has something to look at
	hashing chan struct{} // capacity 1: held for one scan

	// Locks are taken in the order in which they stand here.

	applyMu sync.Mutex // held to change the contents
	free    freeSpace  // guarded by applyMu

	commitMu sync.Mutex // held for one fsync, which those who wait share

	mu       sync.Mutex
	closed   bool
	kv       mvcc.WatchableKV // the same over all contents up to a Reset; nil before the first
	epoch    *epoch           // of kv
	receiver *receiver        // the snapshot being received; nil if none
	wishes   wishes           // pending compactions of cur
	unsaved  bool             // wishes differ from those in the file
	held     bool             // a hash is being made: compactions wait
	spools   []*spool         // oldest first
	spoolSeq int

	changedMu sync.Mutex
	changed   chan struct{} // nil until somebody asks
}

var _ heliograph.Replica = (*Store)(nil)

// Open opens the store in cfg.Dir. Without a file there it is empty until a
// snapshot is received. What an interrupted transfer left behind is removed. If
// another process has the store open, Open waits for cfg.LockTimeout and says
// so; a file that cannot be used is an error that says what to do.
func Open(cfg Config) (*Store, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "spool"), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s := &Store{
		cfg:     cfg,
		log:     cfg.Log,
		zap:     zaplog.New(cfg.Log),
		lessor:  newLessor(),
		kick:    make(chan struct{}, 1),
		hashing: make(chan struct{}, 1),
	}
	s.free = freeSpace{dir: cfg.Dir, keep: cfg.MinFree}
	if s.lock, err = lockFile(s.path(".lock"), cfg.LockTimeout); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

func (s *Store) open() error {
	if err := s.removeLeftovers(); err != nil {
		return err
	}
	if _, err := os.Stat(s.path(".db")); err == nil {
		if err := s.load(); err != nil {
			return fmt.Errorf("store: %s cannot be used: %w (to start over from a new snapshot, move the file away)", s.path(".db"), err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	var err error
	if s.metrics, err = newMetrics(s); err != nil {
		return errors.Join(err, s.closeContents())
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.runCommitter) // Close waits for both
	s.wg.Go(s.runKeeper)
	return nil
}

// load opens the file that is there.
func (s *Store) load() error {
	path := s.path(".db")
	var sum summary
	var own ownState
	err := view(path, s.cfg.LockTimeout, func(tx *bolt.Tx) (err error) {
		if own, err = readOwn(tx); err == nil {
			sum, err = inspect(tx)
		}
		return err
	})
	if err != nil {
		return err
	}
	c, err := openContents(path, s.cfg.LockTimeout, s.zap)
	if err != nil {
		return err
	}
	c.lineage.Store(&own.lineage)
	c.unequal.Store(own.unequal)
	s.auth.Store(own.auth)
	if bad := sum.tally.merge(own.tally); bad != nil {
		c.damaged = &heliograph.DivergedError{Rev: bad.first, Why: fmt.Sprintf(
			"the replica's own file does not hold the records that were applied as revisions %d to %d: "+
				"it was written to or is damaged; helio resync replaces it", bad.first, bad.last)}
		s.log.Error("database is damaged", "database", s.cfg.Database, "rev", bad.first, "err", c.damaged)
	}
	c.digests.begin(sum.tally, own.tally, sum.base)
	if c.damaged != nil {
		c.digests.leave()
	}
	s.install(c, sum, own.wishes.after(sum.compacted))
	return nil
}

// install makes MVCC serve c, which holds what sum says, and lets go of the
// contents before. It cannot fail: inspect has seen every record.
func (s *Store) install(c *contents, sum summary, pending wishes) {
	c.access = sum.access
	s.lessor.stage(sum.ttl)
	kv, e := s.kv, s.epoch
	if kv == nil {
		kv = mvcc.New(s.zap, c.be, s.lessor, mvcc.StoreConfig{})
		e = newEpoch(kv)
	} else if err := kv.Restore(c.be); err != nil {
		panic(fmt.Sprintf("store: MVCC refused contents that were found good: %v", err))
	}
	s.lessor.publish()
	c.epoch = e
	c.begin(kv.Rev(), sum.compacted, sum.floor)

	s.mu.Lock()
	s.kv, s.epoch, s.wishes, s.unsaved = kv, e, pending, false
	old := s.cur.Swap(c)
	s.mu.Unlock()
	if old != nil {
		close(old.gone)
		s.wg.Go(func() {
			old.users.Wait()
			if err := old.be.Close(); err != nil {
				s.log.Error("replaced database did not close", "database", s.cfg.Database, "err", err)
			}
		})
	}
}

// Close ends what goes on, makes everything applied durable and closes the
// files. It waits for calls that are reading. What KV gave out must not be used
// any more; snapshots that were not released can only be released. A second
// call is harmless.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	r := s.receiver
	s.mu.Unlock()

	s.cancel()
	var err error
	if r != nil {
		err = r.Abort()
	}
	// Whoever holds applyMu may still start something. Who gets it later sees
	// that ctx has ended.
	s.applyMu.Lock()
	s.applyMu.Unlock() //nolint:staticcheck // a barrier
	s.wg.Wait()
	err = errors.Join(err, s.closeContents(), s.closeSpools())
	s.metrics.unregister()
	s.notify()
	return errors.Join(err, s.lock.Close())
}

func (s *Store) closeContents() error {
	c := s.cur.Load()
	if c == nil {
		return nil
	}
	c.users.Wait()
	if s.unsaved { // nothing runs any more that could change it
		writeWishes(c.be, s.wishes)
	}
	if s.ctx != nil {
		s.commit(c)
	}
	return errors.Join(s.kv.Close(), c.be.Close())
}

// acquire returns the current contents, which stay open until users.Done.
func (s *Store) acquire() (*contents, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, heliograph.ErrClosed
	}
	c := s.cur.Load()
	if c == nil {
		return nil, heliograph.ErrNotReady
	}
	c.users.Add(1)
	return c, nil
}

// Origin returns where the bytes come from; zero before the first snapshot.
func (s *Store) Origin() heliograph.Origin { return s.Lineage().Origin }

// Lineage returns where the bytes come from and which histories they left before;
// zero before the first snapshot. Its forks are not to be changed.
func (s *Store) Lineage() heliograph.Lineage {
	if c := s.cur.Load(); c != nil {
		return *c.lineage.Load()
	}
	return heliograph.Lineage{}
}

// Applied returns the last applied revision; 0 before the first snapshot.
func (s *Store) Applied() int64 {
	if c := s.cur.Load(); c != nil {
		return c.applied.Load()
	}
	return 0
}

// Durable returns the last revision that a crash cannot take back.
func (s *Store) Durable() int64 {
	if c := s.cur.Load(); c != nil {
		return c.durable.Load()
	}
	return 0
}

// Compacted returns the compaction revision; 0 if never compacted.
func (s *Store) Compacted() int64 {
	if c := s.cur.Load(); c != nil {
		return c.compacted.Load()
	}
	return 0
}

// Damaged returns why the file that was found at Open must not be followed on:
// its records are not those that were applied. Nil if they are, as far as they can
// be compared; what was compacted cannot.
func (s *Store) Damaged() error {
	if c := s.cur.Load(); c != nil && c.damaged != nil {
		return c.damaged
	}
	return nil
}

// Floor returns the revision above which History is complete. It is Compacted,
// or higher while a compaction is under way, or if the contents came from an etcd
// whose revisions a restore had bumped; 0 before the first snapshot.
func (s *Store) Floor() int64 {
	if c := s.cur.Load(); c != nil {
		return c.floor.Load()
	}
	return 0
}

// Generation rises whenever the contents are replaced by a snapshot, or dropped, or
// become part of another history; see [Store.Adopt].
func (s *Store) Generation() int64 { return s.generation.Load() }

// Size returns the bytes of the database file, and those of them that hold
// data. Both are 0 before the first snapshot.
func (s *Store) Size() (total, inUse int64) {
	if c := s.cur.Load(); c != nil {
		return c.be.Size(), c.be.SizeInUse()
	}
	return 0, 0
}

// Changed returns a channel that is closed at the next change of Applied,
// Durable, Compacted or Generation, and at Close. Take it, then read, then wait.
func (s *Store) Changed() <-chan struct{} {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func (s *Store) notify() {
	s.changedMu.Lock()
	defer s.changedMu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *Store) path(suffix string) string {
	return filepath.Join(s.cfg.Dir, string(s.cfg.Database)+suffix)
}

// removeLeftovers removes what a process that was killed had half received or
// was handing down. No other database's files have these names: '@' stands in
// no name.
func (s *Store) removeLeftovers() error {
	if err := os.Remove(s.path(".partial")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	dir := filepath.Join(s.cfg.Dir, "spool")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), string(s.cfg.Database)+"@") {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("store: %w", err)
		}
	}
	return nil
}

// lockFile locks path, which it creates; the lock goes with the process.
func lockFile(path string, timeout time.Duration) (*fileutil.LockedFile, error) {
	deadline := time.Now().Add(timeout)
	for {
		l, err := fileutil.TryLockFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, fileutil.ErrLocked):
			return nil, fmt.Errorf("store: lock: %w", err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("store: another process has %s open: stop it, or use another folder", path)
		}
		time.Sleep(min(50*time.Millisecond, timeout))
	}
}
