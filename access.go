package heliograph

import (
	"encoding/binary"
	"fmt"
)

// AccessControl is what is known of an etcd's access control.
type AccessControl struct {
	Enabled  bool
	Revision uint64 // of its users and roles; 0 if it does not say, as before etcd 3.5
}

// accessBytes is the length of what Append writes.
const accessBytes = 9

// Append appends a to dst as replicas keep it:
//
//	enabled u8, 0 or 1 │ revision u64 BE
func (a AccessControl) Append(dst []byte) []byte {
	enabled := byte(0)
	if a.Enabled {
		enabled = 1
	}
	return binary.BigEndian.AppendUint64(append(dst, enabled), a.Revision)
}

// ParseAccessControl reads what [AccessControl.Append] has written. It returns nil
// for nothing, which means that it is not known, and retains nothing of b.
func ParseAccessControl(b []byte) (*AccessControl, error) {
	if b == nil {
		return nil, nil
	}
	if len(b) != accessBytes || b[0] > 1 {
		return nil, fmt.Errorf("the note on the source's access control has %d bytes that make no sense", len(b))
	}
	return &AccessControl{Enabled: b[0] == 1, Revision: binary.BigEndian.Uint64(b[1:])}, nil
}

// EtcdAccessControl reads the two values of that in etcd's bucket auth, authEnabled
// and authRevision; either may be missing.
func EtcdAccessControl(enabled, revision []byte) (a AccessControl) {
	a.Enabled = len(enabled) == 1 && enabled[0] == 1
	if len(revision) == 8 {
		a.Revision = binary.BigEndian.Uint64(revision)
	}
	return a
}

// Outdated returns why the users and roles of a replica, which came with its last
// snapshot and are as of a, cannot be taken for those of the source; "" if they
// can. source is what the source has said since, nil if it has not.
func (a AccessControl) Outdated(source *AccessControl) string {
	switch {
	case source == nil:
		return "whether the source has access control on is not known"
	case source.Enabled && !a.Enabled:
		return "the source has turned access control on since its last snapshot"
	case a.Enabled && !source.Enabled:
		return "the source has turned access control off since its last snapshot"
	case !a.Enabled, source.Revision != 0 && source.Revision == a.Revision:
		return ""
	case source.Revision == 0:
		return "the source has access control on and does not say whether users and roles have changed since its last snapshot"
	}
	return fmt.Sprintf("users and roles of the source have changed since its last snapshot (they are at revision %d, here at %d)", source.Revision, a.Revision)
}
