package promote

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"google.golang.org/protobuf/proto"
)

// A new cluster's log begins with the one entry that adds its one member.
const (
	firstTerm  uint64 = 1
	firstIndex uint64 = 1
)

// member is the only member of a new cluster.
type member struct {
	cluster *membership.RaftCluster
	self    *membership.Member
}

// newMember derives the ids of cluster and member from name, URLs and token, as
// etcd does when it bootstraps.
func newMember(lg *zap.Logger, name string, peerURLs []string, token string) (*member, error) {
	urls, err := types.NewURLs(peerURLs)
	if err != nil {
		return nil, fmt.Errorf("peer URLs: %w", err)
	}
	cl, err := membership.NewClusterFromURLsMap(lg, token, types.URLsMap{name: urls})
	if err != nil {
		return nil, fmt.Errorf("new cluster: %w", err)
	}
	return &member{cluster: cl, self: cl.MemberByName(name)}, nil
}

func (m *member) etcdID() heliograph.EtcdID { return heliograph.EtcdID(m.cluster.ID()) }

func (m *member) confState() *raftpb.ConfState {
	return &raftpb.ConfState{Voters: []uint64{uint64(m.self.ID)}}
}

// writeLog creates dir as a data directory with WAL and raft snapshot, as a member
// has them that has just applied its own addition. The database is missing yet.
func (m *member) writeLog(lg *zap.Logger, dir string) (err error) {
	if err := errors.Join(os.MkdirAll(walDir(dir), 0o700), os.MkdirAll(snapDir(dir), 0o700)); err != nil {
		return err
	}
	id := uint64(m.self.ID)
	metadata, err := proto.Marshal(&etcdserverpb.Metadata{NodeID: proto.Uint64(id), ClusterID: proto.Uint64(uint64(m.cluster.ID()))})
	if err != nil {
		return err
	}
	addition, err := m.addition()
	if err != nil {
		return err
	}
	// wal.Create builds the log beside walDir and renames it into place.
	w, err := wal.Create(lg, walDir(dir), metadata)
	if err == nil && w == nil {
		// It forgets the error of an fsync of the folder when closing that works.
		err = errors.New("its folder cannot be synced")
	}
	if err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	hard := &raftpb.HardState{Term: proto.Uint64(firstTerm), Vote: proto.Uint64(id), Commit: proto.Uint64(firstIndex)}
	if err := w.Save(hard, []*raftpb.Entry{addition}); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	// The snapshot's file comes before the record in the log that names it.
	err = snap.New(lg, snapDir(dir)).SaveSnap(&raftpb.Snapshot{
		Data: etcdserver.GetMembershipInfoInV2Format(lg, m.cluster),
		Metadata: &raftpb.SnapshotMetadata{
			ConfState: m.confState(), Index: proto.Uint64(firstIndex), Term: proto.Uint64(firstTerm),
		},
	})
	if err != nil {
		return fmt.Errorf("raft snapshot: %w", err)
	}
	return w.SaveSnapshot(&walpb.Snapshot{Index: proto.Uint64(firstIndex), Term: proto.Uint64(firstTerm), ConfState: m.confState()})
}

// addition is the log entry that adds the member.
func (m *member) addition() (*raftpb.Entry, error) {
	self, err := json.Marshal(m.self)
	if err != nil {
		return nil, err
	}
	change, err := proto.Marshal(&raftpb.ConfChange{
		Type: raftpb.ConfChangeAddNode.Enum(), NodeId: proto.Uint64(uint64(m.self.ID)), Context: self,
	})
	if err != nil {
		return nil, err
	}
	return &raftpb.Entry{
		Type: raftpb.EntryConfChange.Enum(), Term: proto.Uint64(firstTerm), Index: proto.Uint64(firstIndex), Data: change,
	}, nil
}

// install replaces the membership and the raft position that the database came
// with. The cluster's version stays: it says what its data may contain.
func (m *member) install(b buckets) error {
	self, err := json.Marshal(m.self)
	if err != nil {
		return err
	}
	conf, err := json.Marshal(m.confState())
	if err != nil {
		return err
	}
	return errors.Join(
		b.recreate(schema.Members),
		b.recreate(schema.MembersRemoved),
		b.put(schema.Members, schema.BackendMemberKey(m.self.ID), self),
		b.put(schema.Meta, schema.MetaConsistentIndexKeyName, binary.BigEndian.AppendUint64(nil, firstIndex)),
		b.put(schema.Meta, schema.MetaTermKeyName, binary.BigEndian.AppendUint64(nil, firstTerm)),
		b.put(schema.Meta, schema.MetaConfStateName, conf),
	)
}
