package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/proctest"
	"github.com/heliograph/heliograph/node"
	"github.com/heliograph/heliograph/promote"
)

// promotable is the configuration of a source node that can be promoted.
func promotable(t *testing.T, etcd *etcdtest.Cluster) (node.Config, *journal) {
	t.Helper()
	ports := proctest.FreePorts(t, 2)
	cfg := newPKI(t).source(t, etcd.Endpoints()[0])
	cfg.ListenClients = fmt.Sprintf("127.0.0.1:%d", ports[0])
	cfg.PeerURL = fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	j := new(journal)
	cfg.Log = j.logger()
	return cfg, j
}

func clientOf(t *testing.T, n *node.Node) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + n.Addrs().Clients}, DialTimeout: waitLimit, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (j *journal) count(s string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.b.String(), s)
}

var operator = node.PromoteOptions{By: "test"}

// A promotion that fails before its commit leaves a mirror that goes on at the same
// addresses; one whose answer alone is lost has happened. Each leaves one line of
// audit.
func TestFailedPromotion(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	rev := etcdtest.Fill(t, client, 100)
	cfg, log := promotable(t, etcd)
	n := open(t, cfg)
	run(t, n)
	waitAt(t, n, rev)
	before := n.Addrs()

	force := operator
	force.Force = true
	node.OnPromote(t, func(context.Context, promote.Config) (promote.Record, error) {
		return promote.Record{}, errors.New("the disk has failed")
	})
	for range 2 {
		_, err := n.Promote(t.Context(), force)
		if err == nil || !strings.Contains(err.Error(), "mirrors again") || !strings.Contains(err.Error(), "the disk has failed") {
			t.Fatalf("got %v", err)
		}
		rev = etcdtest.Fill(t, client, 50)
		waitAt(t, n, rev)
	}
	if got := n.Addrs(); got != before {
		t.Errorf("addresses %+v, before %+v", got, before)
	}
	reader := clientOf(t, n)
	if resp, err := reader.Get(t.Context(), "x"); err != nil || resp.Header.Revision != rev {
		t.Errorf("read %+v, %v", resp, err)
	}
	if _, body := get(t, n.Addrs().Socket, "/metrics"); !strings.Contains(body, "\nheliograph_store_") || !strings.Contains(body, `state="following"} 1`) {
		t.Error("metrics lack the new phase's")
	}
	if log.count("msg=audit") != 2 || log.count("outcome=failed") != 2 || log.snapshots() != 1 {
		t.Errorf("%d lines of audit, %d snapshots", log.count("msg=audit"), log.snapshots())
	}

	// The answer is lost, the promotion is not.
	node.OnPromote(t, func(ctx context.Context, cfg promote.Config) (promote.Record, error) {
		_, err := promote.Promote(ctx, cfg)
		return promote.Record{}, errors.Join(err, errors.New("fsync has failed"))
	})
	rec, err := n.Promote(t.Context(), force)
	if err != nil || rec.State != promote.Promoted || rec.Revision != rev {
		t.Fatalf("%+v, %v", rec, err)
	}
	put, err := reader.Put(t.Context(), "x", "y")
	if err != nil || put.Header.Revision != rev+1 {
		t.Errorf("%+v, %v", put, err)
	}
	if code, body := get(t, n.Addrs().Socket, "/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d %s", code, body)
	}
	if log.count("msg=audit") != 3 || log.count("outcome=promoted ") != 1 {
		t.Errorf("%d lines of audit", log.count("msg=audit"))
	}
}

// A node that is told to stop before the commit point of its promotion stops, and is
// a mirror when it starts again.
func TestStoppedWhilePromoting(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 100)
	cfg, log := promotable(t, etcd)
	n := open(t, cfg)
	stop := run(t, n)
	waitAt(t, n, rev)
	begun := make(chan struct{})
	node.OnPromote(t, func(ctx context.Context, _ promote.Config) (promote.Record, error) {
		close(begun)
		<-ctx.Done()
		return promote.Record{}, context.Cause(ctx)
	})
	asked := make(chan error, 1)
	go func() { // waited for below
		force := operator
		force.Force = true
		_, err := n.Promote(t.Context(), force)
		asked <- err
	}()
	<-begun
	stop()
	if err := <-asked; err == nil || !strings.Contains(err.Error(), "it is a mirror as before") {
		t.Errorf("who asked was told %v", err)
	}
	if log.count("msg=audit") != 1 || log.count("outcome=failed") != 1 {
		t.Errorf("%d lines of audit", log.count("msg=audit"))
	}
	n = open(t, cfg)
	run(t, n)
	waitAt(t, n, etcdtest.Fill(t, etcd.Client(t), 10))
}

// Who has gone while the origin was being asked has promoted nothing: that it has not
// answered says nothing then.
func TestNotPromotedForNobody(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	cfg, log := promotable(t, etcd)
	n := open(t, cfg)
	run(t, n)
	waitAt(t, n, etcdtest.Fill(t, etcd.Client(t), 100))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 {
		if _, err := n.Promote(gone, operator); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	waitAt(t, n, etcdtest.Fill(t, etcd.Client(t), 10))
	if log.count("outcome=failed") != 10 {
		t.Errorf("%d lines of audit", log.count("msg=audit"))
	}
}

// What only a mirror can do is refused by a promoted node in words; it needs no
// certificates any more, and no --listen.
func TestPromotedNode(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 100)
	cfg, log := promotable(t, etcd)
	n := open(t, cfg)
	stop := run(t, n)
	waitAt(t, n, rev)
	if _, err := n.Promote(t.Context(), operator); !refusedBecause(err, "answers", true) {
		t.Errorf("while its etcd answers: %v", err)
	}
	etcd.Member(0).Kill()
	waitFor(t, "noticed", func() bool { return !n.Plan(t.Context(), operator).OriginAnswers })
	rec, err := n.Promote(t.Context(), operator)
	if err != nil || rec.Before {
		t.Fatal(rec, err)
	}
	check := func() {
		t.Helper()
		if v := n.Verify(t.Context()); v.Result != heliograph.VerifyUnknown || !strings.Contains(v.Why, "promoted") {
			t.Errorf("verify: %+v", v)
		}
		if err := n.Resync(t.Context(), node.ResyncOptions{}); err == nil || !strings.Contains(err.Error(), "promoted") {
			t.Errorf("resync: %v", err)
		}
		if _, err := n.Export(t.Context(), node.ExportOptions{Out: t.TempDir() + "/x"}); err == nil || !strings.Contains(err.Error(), "etcdctl snapshot save") {
			t.Errorf("export: %v", err)
		}
		if p := n.Plan(t.Context(), operator); p.Promoted == nil || p.Promoted.Token != rec.Token {
			t.Errorf("plan: %+v", p)
		}
		if again, err := n.Promote(t.Context(), operator); err != nil || again.Token != rec.Token || !again.Before {
			t.Errorf("promoted again: %+v, %v", again, err)
		}
		bumped, elsewhere := operator, operator
		bumped.BumpRevision, elsewhere.PeerURL = 7, nobody
		if _, err := n.Promote(t.Context(), bumped); !refusedBecause(err, "--bump-revision 0, and not 7", false) {
			t.Errorf("promoted again with a bump: %v", err)
		}
		if _, err := n.Promote(t.Context(), elsewhere); !refusedBecause(err, "and not "+nobody, false) {
			t.Errorf("promoted again with another peer URL: %v", err)
		}
		elsewhere.PeerURL = rec.PeerURLs[0] + "/"
		if again, err := n.Promote(t.Context(), elsewhere); err != nil || !again.Before {
			t.Errorf("promoted again with its own peer URL: %+v, %v", again, err)
		}
		s := n.Status()[0]
		if s.Status != heliograph.Promoted || !strings.Contains(s.Why, rec.Origin) || !strings.Contains(s.Why, "by test") || s.HeadRevision != rev {
			t.Errorf("status: %+v", s)
		}
	}
	check()
	stop()

	cfg.Credentials, cfg.CredentialsErr = nil, errors.New("us1.crt expired")
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg.Listen = taken.LocalAddr().String()
	n = open(t, cfg)
	run(t, n)
	waitFor(t, "ready", func() bool {
		code, _ := get(t, n.Addrs().Socket, "/readyz")
		return code == http.StatusOK
	})
	check()
	if at := n.Addrs(); at.Mirrors != "" {
		t.Errorf("mirrors are served at %s", at.Mirrors)
	}
	if log.count("expired") == 0 {
		t.Error("nothing is said of the missing certificate")
	}
	// A mirror without certificates does not start, and says why.
	cfg.DataDir = t.TempDir() + "/other"
	if _, err := node.Open(cfg); err == nil || err.Error() != "us1.crt expired" {
		t.Errorf("a mirror without certificates: %v", err)
	}
}

// promoted runs a node that is promoted at once, and returns how to stop it.
func promoted(t *testing.T) (n *node.Node, cfg node.Config, stop func()) {
	t.Helper()
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 10)
	cfg, _ = promotable(t, etcd)
	n = open(t, cfg)
	stop = run(t, n)
	waitAt(t, n, rev)
	force := operator
	force.Force = true
	if _, err := n.Promote(t.Context(), force); err != nil {
		t.Fatal(err)
	}
	return n, cfg, stop
}

// A promoted node that is started with another --peer-url has the membership say so,
// also when its etcd asks who may change that; without one it leaves the membership
// alone.
func TestPromotedPeerURLChanges(t *testing.T) {
	n, cfg, stop := promoted(t)
	c := clientOf(t, n)
	if _, err := c.UserAdd(t.Context(), "root", "secret"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UserGrantRole(t.Context(), "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := cfg.PeerURL
	moved := fmt.Sprintf("http://127.0.0.1:%d", proctest.FreePorts(t, 1)[0])
	for _, test := range []struct{ flag, want string }{
		{moved, moved},
		{"", moved},
		{first, first},
	} {
		stop()
		cfg.PeerURL = test.flag
		n = open(t, cfg)
		stop = run(t, n)
		waitFor(t, "ready", func() bool {
			code, _ := get(t, n.Addrs().Socket, "/readyz")
			return code == http.StatusOK
		})
		c, err := clientv3.New(clientv3.Config{
			Endpoints: []string{"http://" + n.Addrs().Clients}, DialTimeout: waitLimit, Logger: zap.NewNop(),
			Username: "root", Password: "secret",
		})
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.MemberList(t.Context())
		c.Close()
		if err != nil || len(list.Members) != 1 || !slices.Equal(list.Members[0].PeerURLs, []string{test.want}) {
			t.Errorf("--peer-url %q: members %v, %v, want %s", test.flag, list, err, test.want)
		}
	}
}

// A promoted node whose etcd takes no writes because of an alarm is not ready, and
// says why.
func TestPromotedEtcdHasAnAlarm(t *testing.T) {
	n, _, _ := promoted(t)
	c := clientOf(t, n)
	list, err := c.MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := list.Members[0].ID
	if code, body := get(t, n.Addrs().Socket, "/readyz"); code != http.StatusOK {
		t.Errorf("readyz before: %d %s", code, body)
	}
	for _, alarm := range []etcdserverpb.AlarmType{etcdserverpb.AlarmType_NOSPACE, etcdserverpb.AlarmType_CORRUPT} {
		change := &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: alarm}
		if _, err := etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Alarm(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Put(t.Context(), "x", "y"); err == nil {
			t.Errorf("%s: a write is taken", alarm)
		}
		want := fmt.Sprintf("alarm %s of member %x", alarm, id)
		if code, body := get(t, n.Addrs().Socket, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, want) {
			t.Errorf("readyz: %d %s, want %q", code, body, want)
		}
		if s := n.Status()[0]; s.Status != heliograph.Promoted || !strings.Contains(s.Why, want) {
			t.Errorf("status %s, %q, want %q", s.Status, s.Why, want)
		}
		change.Action = etcdserverpb.AlarmRequest_DEACTIVATE
		if _, err := etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Alarm(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if code, body := get(t, n.Addrs().Socket, "/readyz"); code != http.StatusOK {
			t.Errorf("readyz after: %d %s", code, body)
		}
	}
}

// refusedBecause reports whether err is a refusal with that reason.
func refusedBecause(err error, why string, forcible bool) bool {
	refused, ok := errors.AsType[*node.NotPromotableError](err)
	return ok && strings.Contains(refused.Refusals[0].Reason, why) && refused.Refusals[0].Forcible == forcible
}

// Nothing forces these, and nothing has happened afterwards.
func TestNeverPromoted(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 100)
	cfg, _ := promotable(t, etcd)
	force := operator
	force.Force = true

	// Without a snapshot.
	etcd.Member(0).Pause()
	n := open(t, cfg)
	stop := run(t, n)
	if _, err := n.Promote(t.Context(), force); !refusedBecause(err, "no whole snapshot", false) {
		t.Errorf("without a snapshot: %v", err)
	}
	if p := n.Plan(t.Context(), operator); p.Bump != (node.BumpAdvice{}) || p.EstimateMS != 0 || p.EstimateFrom != "" {
		t.Errorf("advice although there is nothing to promote: %+v", p)
	}
	etcd.Member(0).Resume()
	waitAt(t, n, rev)

	// With a peer port that somebody else has.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	stop()
	cfg.PeerURL = "http://" + taken.Addr().String()
	n = open(t, cfg)
	stop = run(t, n)
	waitAt(t, n, rev)
	if _, err := n.Promote(t.Context(), force); !refusedBecause(err, "the port is in use", false) || !strings.Contains(err.Error(), "the node was started with it") {
		t.Errorf("with a peer port in use: %v", err)
	}
	other := force
	other.PeerURL = "http://127.0.0.1:1"
	if _, err := n.Promote(t.Context(), other); !refusedBecause(err, "started with --peer-url", false) {
		t.Errorf("with another peer URL: %v", err)
	}
	stop()

	// With a bump that no revision has room for, and https without certificates.
	cfg.PeerURL = ""
	n = open(t, cfg)
	stop = run(t, n)
	waitAt(t, n, rev)
	other = force
	other.PeerURL = "https://127.0.0.1:2380"
	if _, err := n.Promote(t.Context(), other); !refusedBecause(err, "https between members", false) {
		t.Errorf("with https between members: %v", err)
	}
	other.PeerURL = "http://[::]:2380"
	if _, err := n.Promote(t.Context(), other); !refusedBecause(err, "names no host", false) {
		t.Errorf("with a peer URL that nobody reaches: %v", err)
	}
	other.PeerURL, other.BumpRevision = fmt.Sprintf("http://127.0.0.1:%d", proctest.FreePorts(t, 1)[0]), 1<<62
	if _, err := n.Promote(t.Context(), other); !refusedBecause(err, "cannot be bumped", false) {
		t.Errorf("with an impossible bump: %v", err)
	}
	stop()

	// Without a place for clients.
	cfg.ListenClients = ""
	n = open(t, cfg)
	run(t, n)
	waitAt(t, n, rev)
	if _, err := n.Promote(t.Context(), force); !refusedBecause(err, "--listen-clients", false) {
		t.Errorf("without clients: %v", err)
	}
	waitAt(t, n, etcdtest.Fill(t, etcd.Client(t), 50)) // it follows as ever
	if s := n.Status()[0]; s.Status != heliograph.Following {
		t.Errorf("status %+v", s)
	}
}

// An export into the data directory, by whatever name, is refused. What stands there
// from elsewhere is in nobody's way, but what looks like the etcd of a promotion whose
// record is lost: the plan says so before it is too late.
func TestDataDirKeepsItsNames(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 10)
	cfg, _ := promotable(t, etcd)
	n := open(t, cfg)
	stop := run(t, n)
	waitAt(t, n, rev)
	link := filepath.Join(t.TempDir(), "link")
	deep := filepath.Join(cfg.DataDir, "deep", "er")
	if err := errors.Join(os.Symlink(cfg.DataDir, link), os.MkdirAll(deep, 0o700)); err != nil {
		t.Fatal(err)
	}
	outs := []string{filepath.Join(cfg.DataDir, "backup.etcd"), filepath.Join(link, "backup.etcd"), filepath.Join(deep, "x"), filepath.Join(link, "deep", "x")}
	for _, out := range outs {
		_, err := n.Export(t.Context(), node.ExportOptions{Out: out, Kind: promote.DataDir})
		if err == nil || !strings.Contains(err.Error(), "in the node's data directory") {
			t.Errorf("export to %s: %v", out, err)
		}
	}
	stop()
	for _, out := range outs {
		_, err := node.ExportDir(t.Context(), cfg.DataDir, node.ExportOptions{Out: out, Kind: promote.DataDir}, nil)
		if err == nil || !strings.Contains(err.Error(), "in the node's data directory") {
			t.Errorf("export of a stopped node to %s: %v", out, err)
		}
	}
	if _, err := node.ExportDir(t.Context(), cfg.DataDir, node.ExportOptions{Out: cfg.DataDir + ".snapshot"}, nil); err != nil {
		t.Errorf("export beside the data directory: %v", err)
	}

	if err := os.Mkdir(filepath.Join(cfg.DataDir, "backup.etcd"), 0o700); err != nil {
		t.Fatal(err)
	}
	n = open(t, cfg)
	run(t, n)
	waitAt(t, n, rev)
	if err := os.Mkdir(promote.EtcdDir(cfg.DataDir, heliograph.DefaultDatabase), 0o700); err != nil {
		t.Fatal(err)
	}
	force := operator
	force.Force = true
	if _, err := n.Promote(t.Context(), force); !refusedBecause(err, "default.etcd is the data of a promoted etcd", false) {
		t.Errorf("with an etcd in its place: %v", err)
	}
	if err := os.Remove(promote.EtcdDir(cfg.DataDir, heliograph.DefaultDatabase)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Promote(t.Context(), force); err != nil {
		t.Errorf("with another etcd beside it: %v", err)
	}
}

// After the commit there is no way back: an etcd that cannot start ends the node with
// a sentence, and the next start runs it.
func TestPromotedEtcdDoesNotStart(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 100)
	cfg, log := promotable(t, etcd)
	n := open(t, cfg)
	var taken net.Listener
	node.OnPromote(t, func(ctx context.Context, pc promote.Config) (promote.Record, error) {
		rec, err := promote.Promote(ctx, pc)
		var lerr error
		taken, lerr = net.Listen("tcp", strings.TrimPrefix(cfg.PeerURL, "http://")) // by somebody else, just now
		return rec, errors.Join(err, lerr)
	})
	ended := make(chan error, 1)
	go func() { ended <- n.Run(t.Context()) }() // waited for below
	waitAt(t, n, rev)
	force := operator
	force.Force = true
	rec, err := n.Promote(t.Context(), force)
	if err == nil || rec.State != promote.Promoted || !strings.Contains(err.Error(), "its etcd does not run") || !strings.Contains(err.Error(), "start the node again") {
		t.Errorf("%+v, %v", rec, err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "start the node again") {
		t.Errorf("Run: %v", err)
	}
	if s := n.Status()[0]; s.Status != heliograph.Promoted || !strings.Contains(s.Why, "its etcd does not run: ") || s.AppliedRevision != rev {
		t.Errorf("status %+v", s)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if log.count("msg=audit") != 1 || log.count("outcome=promoted") != 1 || log.count("its etcd does not run: ") == 0 {
		t.Errorf("%d lines of audit", log.count("msg=audit"))
	}
	if _, err := node.Open(cfg); err == nil || !strings.Contains(err.Error(), "--peer-url") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("with the port still in use: %v", err)
	}
	taken.Close()
	n = open(t, cfg)
	run(t, n)
	put, err := clientOf(t, n).Put(t.Context(), "x", "y")
	if err != nil || put.Header.Revision != rev+1 {
		t.Errorf("%+v, %v", put, err)
	}
}

// What a crash has cut short has its outcome at the next start, and its line of audit.
func TestPromotionTakenBack(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 100)
	cfg, log := promotable(t, etcd)
	n := open(t, cfg)
	stop := run(t, n)
	waitAt(t, n, rev)
	stop()
	// Killed before the commit, and after it was taken back but before that was audited.
	for i, state := range []promote.State{promote.Begun, promote.TakenBack} {
		left, err := json.Marshal(promote.Record{
			State: state, By: "alice",
			Fork: heliograph.Fork{Revision: rev, Cluster: cfg.Cluster, Database: heliograph.DefaultDatabase, Token: "t"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cfg.DataDir, promote.RecordFile), left, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second start has nothing to say
			n = open(t, cfg)
			stop := run(t, n)
			waitAt(t, n, etcdtest.Fill(t, etcd.Client(t), 50))
			stop()
			if want := i + 1; log.count("msg=audit") != want || log.count(`by=alice`) != want || log.count("taken back after a restart") != want {
				t.Errorf("%s: %d lines of audit", state, log.count("msg=audit"))
			}
		}
	}
}

// A promotion that was committed has one line of audit, also if the node is told to
// stop, or is killed, before its etcd serves.
func TestPromotedAndAuditedOnce(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			etcd := etcdtest.Start(t, etcdtest.Options{})
			rev := etcdtest.Fill(t, etcd.Client(t), 100)
			cfg, log := promotable(t, etcd)
			n := open(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			node.OnPromote(t, func(ctx context.Context, pc promote.Config) (promote.Record, error) {
				defer cancel()
				return promote.Promote(ctx, pc)
			})
			ended := make(chan error, 1)
			go func() { ended <- n.Run(ctx) }() // waited for below
			waitAt(t, n, rev)
			if killed {
				cancel()
				<-ended
				n.Close()
				if _, err := promote.Promote(t.Context(), promote.Config{Dir: cfg.DataDir, Cluster: cfg.Cluster, PeerURLs: []string{cfg.PeerURL}, By: "test"}); err != nil {
					t.Fatal(err)
				}
			} else {
				force := operator
				force.Force = true
				if _, err := n.Promote(t.Context(), force); err == nil || !strings.Contains(err.Error(), "was stopped before its etcd ran") {
					t.Errorf("who asked was told %v", err)
				}
				if err := <-ended; err != nil {
					t.Error(err)
				}
				n.Close()
				if log.count("msg=audit") != 1 || log.count("was stopped before its etcd ran") != 1 {
					t.Errorf("%d lines of audit", log.count("msg=audit"))
				}
			}
			for range 2 {
				if err := open(t, cfg).Close(); err != nil {
					t.Error(err)
				}
			}
			if log.count("msg=audit") != 1 || log.count("outcome=promoted")+log.count(`outcome="promoted: finished after a restart"`) != 1 || log.count("by=test") == 0 {
				t.Errorf("%d lines of audit", log.count("msg=audit"))
			}
		})
	}
}
