package promote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/zaplog"
)

// step names a point between two changes on the disk, for tests that crash there.
type step string

const (
	stepBegun     step = "begun"     // the record says begun
	stepBuilt     step = "built"     // the data directory is complete but for its database
	stepCommitted step = "committed" // the transaction is durable
	stepMoved     step = "moved"     // the database is in the data directory
	stepNamed     step = "named"     // the data directory has its name
	stepRecorded  step = "recorded"  // the record says promoted
)

// ErrOutdatedUsers says that the users and roles in a replica are known not to be
// those of the source any more; the text around it says how. It is found with
// [errors.Is], and overcome with Config.OutdatedUsers.
var ErrOutdatedUsers = errors.New("the users and roles here are not the source's")

// reached is called at every step; only tests set it.
var reached = func(step) {}

// Promote makes an etcd data directory of the replica in cfg.Dir, whose store is
// closed. It returns when that is durable; the database is read twice and not copied. A node
// that is promoted already is left alone: Promote returns its record, whatever
// else cfg asks for.
//
// After an error the node is a mirror as before, unless the error is of the final
// commit or of what follows it: then [Recover], or another Promote, finds out and
// finishes. The end of ctx is heeded up to the commit. Calls for one directory
// must not overlap.
func Promote(ctx context.Context, cfg Config) (Record, error) {
	cfg, err := cfg.resolve()
	if err != nil {
		return Record{}, err
	}
	f := filesOf(cfg.Dir, cfg.Database)
	if promoted, rec, err := recoverPromotion(f.dir, cfg.Database, cfg.Log); err != nil || promoted {
		return rec, err
	}
	if ok, err := exists(f.db); err != nil || !ok {
		return Record{}, errors.Join(fmt.Errorf("promote database %s: %w: there is no replica in %s", cfg.Database, heliograph.ErrNotReady, cfg.Dir), err)
	}
	lock, err := f.lockReplica()
	if err != nil {
		return Record{}, fmt.Errorf("promote database %s: %w", cfg.Database, err)
	}
	defer lock.Close()
	rec, err := run(ctx, cfg, f)
	if err != nil {
		return Record{}, fmt.Errorf("promote database %s: %w", cfg.Database, err)
	}
	return rec, nil
}

func run(ctx context.Context, cfg Config, f files) (Record, error) {
	lg := zaplog.New(cfg.Log)
	m, err := newMember(lg, cfg.Name, cfg.PeerURLs, cfg.Token)
	if err != nil {
		return Record{}, err
	}
	s, err := inspect(f, cfg.LeaseTTL)
	if err != nil {
		return Record{}, err
	}
	if err := cfg.checkUsers(s); err != nil {
		return Record{}, err
	}
	fork, err := newFork(s, cfg, m.etcdID())
	if err != nil {
		return Record{}, err
	}
	rec := Record{
		State: Begun, Fork: fork, Name: cfg.Name, PeerURLs: cfg.PeerURLs, By: cfg.By,
		LastKnownRevision: cfg.LastKnownRevision, MissingRevisions: -1,
		Leases: len(s.leases), LeasesDefaulted: s.defaulted,
	}
	if cfg.LastKnownRevision > 0 {
		rec.MissingRevisions = max(0, cfg.LastKnownRevision-s.rev)
	}
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	if err := prepare(ctx, lg, f, rec, m); err != nil {
		return Record{}, errors.Join(err, rollBack(f, rec))
	}
	if err := (rewrite{survey: s, fork: fork, member: m}).run(f.db); err != nil {
		return Record{}, fmt.Errorf("commit: %w; whether it took effect shows at the next start", err)
	}
	reached(stepCommitted)
	return finish(f, rec, cfg.Log)
}

// inspect reads the replica's file before anything is changed.
func inspect(f files, leaseTTL time.Duration) (s survey, err error) {
	if err := checkFree(f.dir, minFree); err != nil {
		return s, err
	}
	err = view(f.db, func(tx *bolt.Tx) (err error) {
		s, err = examine(tx, int64(leaseTTL/time.Second))
		return err
	})
	if err != nil {
		return s, fmt.Errorf("%s cannot be promoted: %w", f.db, err)
	}
	return s, nil
}

func (c Config) checkUsers(s survey) error {
	if s.outdated == "" || c.OutdatedUsers {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrOutdatedUsers, s.outdated)
}

func newFork(s survey, cfg Config, id heliograph.EtcdID) (heliograph.Fork, error) {
	if s.rev > maxRevision || s.rev+cfg.BumpRevision > maxRevision {
		return heliograph.Fork{}, fmt.Errorf("revision %d cannot be bumped by %d", s.rev, cfg.BumpRevision)
	}
	if uint64(id) == s.origin.EtcdID {
		return heliograph.Fork{}, fmt.Errorf("the new etcd would have the cluster id %s of the old one: use another token", id)
	}
	return heliograph.Fork{
		Origin: s.origin.String(), Revision: s.rev, Bump: cfg.BumpRevision,
		Cluster: cfg.Cluster, Database: cfg.Database,
		EtcdID: id, Token: cfg.Token, At: time.Now().UTC().Truncate(time.Millisecond),
	}, nil
}

// prepare does what leaves the replica alone: the record, and the data directory
// without its database.
func prepare(ctx context.Context, lg *zap.Logger, f files, rec Record, m *member) error {
	if err := os.RemoveAll(f.building); err != nil {
		return err
	}
	if err := rec.write(f.dir); err != nil {
		return err
	}
	reached(stepBegun)
	if err := m.writeLog(lg, f.building); err != nil {
		return err
	}
	if err := errors.Join(syncTree(f.building), syncPath(f.dir)); err != nil {
		return err
	}
	reached(stepBuilt)
	return ctx.Err()
}

// rollBack removes what prepare made. The record changes last: as long as it says
// begun, somebody will look again.
func rollBack(f files, rec Record) error {
	if err := os.RemoveAll(f.building); err != nil {
		return err
	}
	if err := syncPath(f.dir); err != nil {
		return err
	}
	if begun, err := exists(recordPath(f.dir)); err != nil || !begun {
		return err
	}
	if rec.State = TakenBack; rec.write(f.dir) == nil {
		return nil
	}
	return removeRecord(f.dir) // on a full disk that works
}

// finish goes on from wherever the steps after the commit have stopped.
func finish(f files, rec Record, log *slog.Logger) (Record, error) {
	named, err := exists(f.etcd)
	if err != nil {
		return Record{}, err
	}
	if !named {
		there, err := exists(f.db)
		if err != nil {
			return Record{}, err
		}
		if there {
			if err := move(f.db, dbFile(f.building)); err != nil {
				return Record{}, err
			}
		}
		reached(stepMoved)
		if err := move(f.building, f.etcd); err != nil {
			return Record{}, err
		}
	}
	reached(stepNamed)
	// Nobody will go on receiving it.
	if err := os.Remove(f.received); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Record{}, err
	}
	rec.State, rec.Finished = Promoted, time.Now().UTC().Truncate(time.Millisecond)
	if err := rec.write(f.dir); err != nil {
		return Record{}, err
	}
	reached(stepRecorded)
	log.Info("promoted", "cluster", rec.Cluster, "database", rec.Database, "rev", rec.Revision, "bump", rec.Bump,
		"origin", rec.Origin, "etcd_id", rec.EtcdID.String(), "missing", rec.MissingRevisions,
		"leases", rec.Leases, "leases_defaulted", rec.LeasesDefaulted, "by", rec.By)
	return rec, nil
}
