package readapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/readapi"
)

func TestStatus(t *testing.T) {
	r := newReplica(t)
	rev := r.put("a", "1")
	version := ""
	srv := serve(t, r, func(c *readapi.Config) { c.Version = func() string { return version } })
	c := srv.client(t)
	for _, want := range []struct{ learned, version, storage string }{
		{"", "3.7.3", "3.7.0"}, {"3.5.21", "3.5.21", ""}, {"3.6.1", "3.6.1", "3.6.0"}, {"odd", "odd", ""},
	} {
		version = want.learned
		st, err := c.Status(call(t), srv.addr)
		if err != nil {
			t.Fatal(err)
		}
		if st.Version != want.version || st.StorageVersion != want.storage {
			t.Errorf("version %q, storage %q, want %v", st.Version, st.StorageVersion, want)
		}
		if st.Leader == 0 || st.Leader != st.Header.MemberId || st.RaftIndex != uint64(rev) || st.RaftAppliedIndex != uint64(rev) || st.RaftTerm == 0 {
			t.Errorf("got %v", st)
		}
		if st.DbSize == 0 || st.DbSizeInUse == 0 || st.DbSizeInUse > st.DbSize || st.IsLearner || len(st.Errors) > 0 {
			t.Errorf("got %v", st)
		}
	}
}

func TestHashes(t *testing.T) {
	r := newReplica(t)
	r.put("a", "1")
	old := r.put("a", "2")
	rev := r.put("b", "3")
	r.compact(old)
	c := serve(t, r).client(t)
	endpoint := c.Endpoints()[0]
	for _, at := range []int64{0, old, rev} {
		want, compact, current, err := r.HashKV(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.HashKV(call(t), endpoint, at)
		if err != nil || got.Hash != want || got.CompactRevision != compact || got.Header.Revision != current {
			t.Errorf("at %d: %v, %v, want %d", at, got, err, want)
		}
		if at == 0 {
			at = rev
		}
		if got.HashRevision != at {
			t.Errorf("hash revision %d, want %d", got.HashRevision, at)
		}
	}
	if _, err := c.HashKV(call(t), endpoint, old-1); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("compacted: %v", err)
	}
	if _, err := c.HashKV(call(t), endpoint, rev+1); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("future: %v", err)
	}
}

func TestSnapshotIsTheCopyAndItsSum(t *testing.T) {
	r := newReplica(t)
	r.put("a", string(make([]byte, 300<<10)))
	stream, err := pb.NewMaintenanceClient(serve(t, r).conn(t)).Snapshot(call(t), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	total := int64(-1)
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got.Write(resp.Blob)
		if total < 0 {
			total = int64(resp.RemainingBytes) + int64(len(resp.Blob))
		}
		if left := max(total-int64(got.Len()), 0); int64(resp.RemainingBytes) != left {
			t.Fatalf("%d bytes remain, said %d", left, resp.RemainingBytes)
		}
	}
	if got.Len()%512 != sha256.Size || int64(got.Len()) != total+sha256.Size {
		t.Fatalf("%d bytes, announced %d", got.Len(), total)
	}
	db := got.Next(int(total))
	if sum := sha256.Sum256(db); !bytes.Equal(sum[:], got.Bytes()) {
		t.Error("the sum is not that of the copy")
	}
}

// pinned is a replica whose snapshots say when they are released.
type pinned struct {
	*replica
	released chan struct{}
}

func (p pinned) Snapshot(context.Context) (heliograph.Snapshot, error) {
	b := make([]byte, 32<<20)
	return &snapshot{Reader: bytes.NewReader(b), sum: sha256.Sum256(b), released: p.released}, nil
}

func TestSnapshotOfAClientThatDoesNotReadIsReleased(t *testing.T) {
	r := pinned{newReplica(t), make(chan struct{})}
	srv := serve(t, r, func(c *readapi.Config) { c.StallTimeout = 100 * time.Millisecond })
	stream, err := pb.NewMaintenanceClient(srv.conn(t)).Snapshot(call(t), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-r.released
	for err == nil {
		_, err = stream.Recv()
	}
	wantStatus(t, err, codes.Unavailable, "took nothing")
}

// truncated is a replica whose snapshots are shorter than they say.
type truncated struct{ *replica }

type short struct{ *snapshot }

func (s short) Size() int64 { return s.snapshot.Size() + 1 }

func (r truncated) Snapshot(context.Context) (heliograph.Snapshot, error) {
	return short{&snapshot{Reader: bytes.NewReader(make([]byte, 512))}}, nil
}

func TestSnapshotThatEndsEarlyIsAnError(t *testing.T) {
	stream, err := pb.NewMaintenanceClient(serve(t, truncated{newReplica(t)}).conn(t)).Snapshot(call(t), &pb.SnapshotRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	wantStatus(t, err, codes.Unknown, "unexpected EOF")
}

func TestMembersLeasesAlarmsAuth(t *testing.T) {
	r := newReplica(t)
	r.leases[7] = leased{60, []string{"b", "a"}}
	r.leases[3] = leased{ttl: 30}
	reg := prometheus.NewRegistry()
	srv := serve(t, r, func(c *readapi.Config) { c.Metrics = reg })
	c := srv.client(t)

	members, err := c.MemberList(call(t))
	if err != nil || len(members.Members) != 1 {
		t.Fatalf("members: %v, %v", members, err)
	}
	if m := members.Members[0]; m.Name != "eu-1" || m.ID != members.Header.MemberId || m.ClientURLs[0] != "http://mirror.example:2379" {
		t.Errorf("member: %v", m)
	}
	leases, err := c.Leases(call(t))
	if err != nil || len(leases.Leases) != 2 || leases.Leases[0].ID != 3 || leases.Leases[1].ID != 7 {
		t.Errorf("leases: %v, %v", leases, err)
	}
	lease, err := c.TimeToLive(call(t), 7, clientv3.WithAttachedKeys())
	if err != nil || lease.TTL != 60 || lease.GrantedTTL != 60 || string(bytes.Join(lease.Keys, []byte(","))) != "a,b" {
		t.Errorf("lease: %v, %v", lease, err)
	}
	lease, err = c.TimeToLive(call(t), 7)
	if err != nil || len(lease.Keys) != 0 {
		t.Errorf("lease without keys: %v, %v", lease, err)
	}
	lease, err = c.TimeToLive(call(t), 8)
	if err != nil || lease.TTL != -1 {
		t.Errorf("unknown lease: %v, %v", lease, err)
	}
	alarms, err := c.AlarmList(call(t))
	if err != nil || len(alarms.Alarms) != 0 {
		t.Errorf("alarms: %v, %v", alarms, err)
	}
	auth, err := c.AuthStatus(call(t))
	if err != nil || auth.Enabled || auth.AuthRevision != 1 {
		t.Errorf("auth: %v, %v", auth, err)
	}
	if _, err := c.Authenticate(call(t), "root", "x"); !errors.Is(err, rpctypes.ErrAuthNotEnabled) {
		t.Errorf("authenticate: %v", err)
	}
	if got := metric(t, reg, "calls_total"); got < 7 {
		t.Errorf("%v calls counted", got)
	}
	if got := metric(t, reg, "connections"); got != 1 {
		t.Errorf("%v connections counted", got)
	}
}

func TestEtcdClientWithAPasswordIsServed(t *testing.T) {
	r := newReplica(t)
	srv := serve(t, r)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.addr}, Username: "root", Password: "x", DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Get(call(t), "a"); err != nil {
		t.Error(err)
	}
}
