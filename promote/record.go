package promote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/heliograph/heliograph"
)

// RecordFile is the name of the record in a node's data directory.
const RecordFile = "promotion.json"

// maxRecordBytes bounds the record that Read takes.
const maxRecordBytes = 1 << 20

// State is how far a promotion has come.
//
//	(no record) ─► Begun ──────► Promoted
//	     ▲           ▼
//	 NoteAudit ◄─ TakenBack
type State string

// The states.
const (
	Begun     State = "begun"      // the replica's file decides what Recover makes of it
	Promoted  State = "promoted"   // final
	TakenBack State = "taken back" // the node is a mirror as before
)

// Record is what a data directory says of its promotion.
type Record struct {
	State State `json:"state"`
	heliograph.Fork
	Name     string   `json:"name"`      // the member's
	PeerURLs []string `json:"peer_urls"` // the member's

	LastKnownRevision int64 `json:"last_known_revision"` // newest of the source that was heard of; 0 if unknown
	MissingRevisions  int64 `json:"missing_revisions"`   // known to exist and not here; -1 if unknown

	Leases          int `json:"leases"`           // whose TTL starts again
	LeasesDefaulted int `json:"leases_defaulted"` // those of them whose TTL was not known

	By       string    `json:"by"` // who asked
	Finished time.Time `json:"finished,omitzero"`
	Audited  bool      `json:"audited,omitempty"` // see NoteAudit
}

// Read returns the record in a node's data directory; false if no promotion has
// begun. Only a record in the state [Promoted] says that the node is promoted:
// for one that has merely begun, ask [Recover].
func Read(dir string) (Record, bool, error) {
	path := filepath.Join(dir, RecordFile)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Record{}, false, nil
	case err != nil:
		return Record{}, false, fmt.Errorf("promotion record: %w", err)
	case info.Size() > maxRecordBytes:
		return Record{}, false, fmt.Errorf("promotion record %s has %d bytes, more than the %d that it can have: restore it from a backup", path, info.Size(), maxRecordBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Record{}, false, fmt.Errorf("promotion record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, false, fmt.Errorf("promotion record %s is damaged: %w: restore it from a backup", path, err)
	}
	known := r.State == Begun || r.State == Promoted || r.State == TakenBack
	if _, err := heliograph.ParseDatabaseID(string(r.Database)); err != nil || !known || r.Token == "" {
		return Record{}, false, fmt.Errorf("promotion record %s is damaged: state %.20q, database %.80q: restore it from a backup", path, r.State, r.Database)
	}
	return r, true, nil
}

// NoteAudit notes durably that the audit has the outcome of the promotion in a
// node's data directory. As long as it is not noted, [Read] tells of a promotion, or
// of one that was taken back, that is not audited. It must not overlap with
// [Promote] and [Recover]; without an outcome it does nothing.
func NoteAudit(dir string) error {
	rec, found, err := Read(dir)
	switch {
	case err != nil || !found:
		return err
	case rec.State == Promoted && !rec.Audited:
		rec.Audited = true
		return rec.write(dir)
	case rec.State == TakenBack:
		return removeRecord(dir)
	}
	return nil
}

func removeRecord(dir string) error {
	if err := os.Remove(recordPath(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("promotion record: %w", err)
	}
	return syncPath(dir)
}

// write makes the record durable, whole or not at all.
func (r Record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = writeFile(filepath.Join(dir, RecordFile), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("promotion record: %w", err)
	}
	return nil
}
