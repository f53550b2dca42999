package promote

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/heliograph/heliograph"
)

func recordPath(dir string) string { return filepath.Join(dir, RecordFile) }

// Recover finishes the promotion in a node's data directory that a crash has cut
// short after its commit, or takes back one that was cut short before. A node
// runs it at every start, before its store is opened. It reports whether the node
// is promoted; if it is, the store must not be opened, and its etcd is in
// EtcdDir(dir, record.Database). In a directory without a promotion it reads its
// names and does nothing; database is the one that the directory is of. log may be
// nil.
func Recover(dir string, database heliograph.DatabaseID, log *slog.Logger) (promoted bool, rec Record, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	promoted, rec, err = recoverPromotion(dir, database, log)
	if err == nil {
		removeUnwritten(dir, log)
	}
	return promoted, rec, err
}

// removeUnwritten removes the records that [writeFile] was writing when the process
// was killed. They harm nobody.
func removeUnwritten(dir string, log *slog.Logger) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	for _, entry := range list {
		// The number is what os.CreateTemp has chosen; a copy that somebody made stays.
		number, ok := strings.CutPrefix(entry.Name(), RecordFile+".")
		if _, nerr := strconv.ParseUint(number, 10, 64); ok && nerr == nil {
			err = errors.Join(err, os.Remove(filepath.Join(dir, entry.Name())))
		}
	}
	if err != nil {
		log.Warn("what was left of a promotion record cannot be removed", "err", err)
	}
}

func recoverPromotion(dir string, database heliograph.DatabaseID, log *slog.Logger) (bool, Record, error) {
	rec, ok, err := Read(dir)
	if err != nil {
		return false, Record{}, err
	}
	if !ok || rec.State == TakenBack {
		return false, Record{}, checkNoEtcd(filesOf(dir, database))
	}
	f := filesOf(dir, rec.Database)
	if rec.State == Promoted {
		if err := checkDataDir(f.etcd); err != nil {
			return false, rec, fmt.Errorf("this node was promoted, but its etcd is gone: %w: restore it from a backup or another member", err)
		}
		return true, rec, nil
	}
	lock, err := f.lockReplica()
	if err != nil {
		return false, rec, fmt.Errorf("recover the promotion: %w", err)
	}
	defer lock.Close()
	if yes, err := f.committed(rec.Token); err != nil {
		return false, rec, fmt.Errorf("recover the promotion: %w", err)
	} else if !yes {
		if err := rollBack(f, rec); err != nil {
			return false, rec, fmt.Errorf("take back the promotion: %w", err)
		}
		log.Warn("an unfinished promotion was taken back: this node is a mirror", "database", rec.Database, "rev", rec.Revision)
		return false, Record{}, nil
	}
	if rec, err = finish(f, rec, log); err != nil {
		return false, rec, fmt.Errorf("finish the promotion: %w", err)
	}
	return true, rec, nil
}

// committed looks for the database where each step leaves it.
func (f files) committed(token string) (bool, error) {
	if ok, err := exists(f.etcd); err != nil || ok {
		return ok, err
	}
	yes, err := committed(f.db, token)
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			err = fmt.Errorf("%s: %w", f.db, err)
		}
		return yes, err
	}
	moved := dbFile(f.building)
	yes, err = committed(moved, token)
	if err == nil && !yes {
		err = errors.New("it is not promoted")
	}
	if err != nil {
		return false, fmt.Errorf("the replica's file is gone, and %s is not it: %w", moved, err)
	}
	return true, nil
}

// checkNoEtcd refuses a directory whose record was lost: a mirror started there
// would bootstrap anew beside a cluster that was written to, or a promotion remove
// what the lost one had moved.
func checkNoEtcd(f files) error {
	for dir, path := range map[string]string{f.etcd: f.etcd, f.building: dbFile(f.building)} {
		there, err := exists(path)
		if err != nil {
			return err
		}
		if there {
			return fmt.Errorf("%s is the data of a promoted etcd, but the record %s is missing: restore it, or start etcd itself on that directory", dir, recordPath(f.dir))
		}
	}
	return nil
}

// checkDataDir returns an error unless dir has what an etcd has left there. Without
// it, etcd would begin a new and empty cluster.
func checkDataDir(dir string) error {
	for _, path := range []string{walDir(dir), dbFile(dir)} {
		if ok, err := exists(path); err != nil || !ok {
			return errors.Join(fmt.Errorf("%s is missing", path), err)
		}
	}
	return nil
}
