package etcd_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/upstream/etcd"
)

func TestMovesOnWhenTheLeaderIsKilled(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	load := etcdtest.StartLoad(t, c.Client(t), etcdtest.LoadOptions{Deletes: true, Txns: true, Leases: true})
	leader := c.Leader(t)
	r := newRig(t, c)
	// The one that will be killed is the first to be followed.
	r.cfg.Endpoints = append([]string{c.Member(leader).Endpoint()}, c.Endpoints()...)
	r.start()
	r.until("the leader followed", func() bool {
		return r.heard.view().addr == c.Member(leader).Endpoint() && r.store.Applied() > 1
	})
	before := load.Written()
	r.until("three thousand", func() bool { return load.Written() > before+3_000 })
	c.Member(leader).Kill()
	before = load.Written()
	r.until("three thousand more", func() bool { return load.Written() > before+3_000 })
	load.Stop()
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 {
		t.Errorf("reported %s: want one snapshot", r.heard)
	}
}

// A stopped process keeps its connections open and says nothing.
func TestMovesOnWhenAMemberFallsSilent(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	client := c.Client(t)
	etcdtest.Fill(t, client, 500)
	follower := (c.Leader(t) + 1) % 3
	other := (c.Leader(t) + 2) % 3
	r := newRig(t, c)
	r.cfg.Endpoints = []string{c.Member(follower).Endpoint(), c.Member(other).Endpoint()}
	r.cfg.Silence = 2 * time.Second
	r.start()
	r.exact(c)
	c.Member(follower).Pause()
	stopped := time.Now()
	r.until("the other member", func() bool { return r.heard.view().addr == c.Member(other).Endpoint() })
	if took := time.Since(stopped); took > 10*time.Second {
		t.Errorf("moved on after %s", took)
	}
	ctl := etcdtest.StartLoad(t, clientOf(t, c.Member(other).Endpoint()), etcdtest.LoadOptions{})
	r.until("a thousand", func() bool { return ctl.Written() > 1_000 })
	ctl.Stop()
	rev, err := r.up.ReadIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.reaches(rev)
	c.Member(follower).Resume()
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 || len(v.lost) == 0 {
		t.Errorf("reported %s: want one snapshot, and the loss", r.heard)
	}
}

func TestRefusesAnotherCluster(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, c.Client(t), 200)
	r := newRig(t, c)
	r.start()
	r.exact(c)
	r.stop()
	applied := r.store.Applied()

	other := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, other.Client(t), 1_000)
	r.cfg.Endpoints = other.Endpoints()
	r.start()
	if why := r.diverged(); why.Rev != 0 || !strings.Contains(why.Why, "etcd cluster") {
		t.Errorf("diverged: %v", why)
	}
	if r.store.Applied() != applied {
		t.Errorf("applied %d: want %d", r.store.Applied(), applied)
	}
}

func TestRefusesAnEtcdThatWentBack(t *testing.T) {
	for _, running := range []bool{false, true} {
		c := etcdtest.Start(t, etcdtest.Options{})
		client := c.Client(t)
		etcdtest.Fill(t, client, 500)
		snapshot := c.Save(t)
		etcdtest.Fill(t, client, 500)
		r := newRig(t, c)
		r.start()
		r.exact(c)
		applied := r.store.Applied()
		if !running {
			r.stop()
		}
		c.Restore(t, snapshot)
		if !running {
			r.start()
		}
		if why := r.diverged(); why.Rev != applied || !strings.Contains(why.Why, "backup") {
			t.Errorf("diverged: %v: want it at revision %d", why, applied)
		}
		if r.store.Applied() != applied {
			t.Errorf("applied %d: want %d", r.store.Applied(), applied)
		}
	}
}

// The new history has the same cluster id and is past the replica's revision:
// only what is in it tells that it is another.
func TestRefusesAnEtcdThatWasCreatedAnew(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, c.Client(t), 500)
	r := newRig(t, c)
	r.start()
	r.exact(c)
	applied := r.store.Applied()
	r.stop()
	c.Wipe(t)
	c.Restart(t)
	load := etcdtest.StartLoad(t, c.Client(t), etcdtest.LoadOptions{Prefix: "other/"})
	r.until("a longer history", func() bool { return load.Written() > 2*applied })
	load.Stop()
	r.start()
	// The whole history is another one: the first revision differs already.
	if why := r.diverged(); why.Rev != 2 {
		t.Errorf("diverged: %v: want it at revision 2", why)
	}
	if r.store.Applied() != applied {
		t.Errorf("applied %d: want %d", r.store.Applied(), applied)
	}
}

func TestSaysWhenTheUserIsNotRoot(t *testing.T) {
	for _, version := range etcdtest.Versions() {
		t.Run(version, func(t *testing.T) { saysWhenTheUserIsNotRoot(t, version) })
	}
}

func saysWhenTheUserIsNotRoot(t *testing.T, version string) {
	c := etcdtest.Start(t, etcdtest.Options{Binary: etcdtest.BinaryOf(t, version, "etcd")})
	client := c.Client(t)
	for _, user := range []string{"reader", "nobody"} {
		if _, err := client.UserAdd(t.Context(), user, "pw"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.RoleAdd(t.Context(), "all"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.RoleGrantPermission(t.Context(), "all", "\x00", "\x00", clientv3.PermissionType(clientv3.PermRead)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UserGrantRole(t.Context(), "reader", "all"); err != nil {
		t.Fatal(err)
	}
	c.EnableAuth(t, "secret")
	for _, test := range []struct{ user, password, want string }{
		{"nobody", "pw", "role root"},
		{"reader", "pw", "role root"}, // may read, but not take a snapshot
		{"root", "wrong", "name and password"},
		{"", "", "requires a user"},
	} {
		r := newRig(t, c)
		r.cfg.Username, r.cfg.Password = test.user, test.password
		r.start()
		r.until("the refusal", func() bool { return r.heard.why() != nil })
		denied, ok := errors.AsType[*etcd.DeniedError](r.heard.why())
		if !ok || !strings.Contains(denied.Error(), test.want) || denied.Username != test.user {
			t.Errorf("user %q: %v: want it to say %q", test.user, r.heard.why(), test.want)
		}
		r.stop()
	}
	r := newRig(t, c)
	r.cfg.Username, r.cfg.Password = "root", "secret"
	r.start()
	r.exact(c)
}

// Every watcher of a stream is checked against the token with which the stream
// began; a stream outlives it.
func TestGoesOnWhenTokensExpire(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Args: []string{"--auth-token-ttl=2"}})
	c.EnableAuth(t, "secret")
	r := newRig(t, c)
	r.cfg.Username, r.cfg.Password = "root", "secret"
	r.cfg.PollInterval = 3 * time.Second // polls keep a token alive
	r.start()
	client := c.Client(t)
	for began := time.Now(); time.Since(began) < 8*time.Second; {
		if _, err := client.Put(t.Context(), "k", time.Now().String()); err != nil {
			t.Fatal(err)
		}
		etcdtest.Fill(t, client, 300)
	}
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 {
		t.Errorf("reported %s: want one snapshot", r.heard)
	}
}

// A role that is taken away is an error, never a delete; given back, all goes on.
func TestRevokedRoleIsNoDelete(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	etcdtest.Fill(t, client, 500)
	if _, err := client.UserAdd(t.Context(), "mirror", "pw"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UserGrantRole(t.Context(), "mirror", "root"); err != nil && !strings.Contains(err.Error(), "role name not found") {
		t.Fatal(err)
	}
	c.EnableAuth(t, "secret")
	c.Etcdctl(t, "user", "grant-role", "mirror", "root")
	r := newRig(t, c)
	r.cfg.Username, r.cfg.Password = "mirror", "pw"
	r.start()
	r.exact(c)
	c.Etcdctl(t, "user", "revoke-role", "mirror", "root")
	r.until("the refusal", func() bool {
		_, denied := errors.AsType[*etcd.DeniedError](r.heard.why())
		return denied
	})
	if got, want := r.store.Applied(), c.Revision(t); got != want {
		t.Errorf("applied %d: want %d", got, want)
	}
	root := c.Client(t)
	etcdtest.Fill(t, root, 500)
	c.Etcdctl(t, "user", "grant-role", "mirror", "root")
	r.exact(c)
}

func TestOverTLS(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{TLS: true})
	etcdtest.Fill(t, c.Client(t), 500)
	r := newRig(t, c)
	r.start()
	r.exact(c)
}

func TestRefusesAPartialSnapshot(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, c.Client(t), 3_000)
	for _, test := range []struct {
		name  string
		fault fault
	}{
		{"cut early", cutAfter(100_000)},
		{"cut late", cutAfter(1_000_000)},
		{"byte flipped", flipAt(500_000)},
		{"stands still", stallAfter(600_000)},
	} {
		t.Run(test.name, func(t *testing.T) {
			proxy := newProxy(t, c.Endpoints()[0], test.fault)
			r := newRig(t, c)
			r.cfg.Endpoints = []string{proxy.endpoint()}
			r.cfg.SnapshotSilence = time.Second
			r.start()
			r.until("a refusal", func() bool { return len(r.heard.view().lost) >= 2 })
			if got := r.store.Applied(); got != 0 {
				t.Errorf("applied %d of a snapshot that is not whole", got)
			}
			t.Logf("lost: %v", r.heard.why())
			proxy.heal()
			r.exact(c)
		})
	}
}

// A connection that is cut while tiles are on their way.
func TestGoesOnAfterCuts(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	client := c.Client(t)
	etcdtest.Fill(t, client, 500)
	proxy := newProxy(t, c.Endpoints()[0], nil)
	r := newRig(t, c)
	r.cfg.Endpoints = []string{proxy.endpoint()}
	r.start()
	r.exact(c)
	r.stop()
	etcdtest.Fill(t, client, 20_000)
	proxy.inject(cutAfter(4_000_000))
	r.start()
	r.until("some cuts", func() bool { return len(r.heard.view().lost) >= 3 })
	proxy.heal()
	r.exact(c)
	if v := r.heard.view(); v.snapshots != 1 {
		t.Errorf("reported %s: want one snapshot", r.heard)
	}
}

func TestNewNamesTheBadField(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	for field, spoil := range map[string]func(*etcd.Config){
		"Endpoints":    func(cfg *etcd.Config) { cfg.Endpoints = nil },
		"Endpoints[1]": func(cfg *etcd.Config) { cfg.Endpoints = []string{"a", ""} },
		"Cluster":      func(cfg *etcd.Config) { cfg.Cluster = "" },
		"Database":     func(cfg *etcd.Config) { cfg.Database = "a b" },
		"Replica":      func(cfg *etcd.Config) { cfg.Replica = nil },
		"Password":     func(cfg *etcd.Config) { cfg.Username = "root" },
		"Username":     func(cfg *etcd.Config) { cfg.Password = "pw" },
		"HeldBytes":    func(cfg *etcd.Config) { cfg.HeldBytes = -1 },
		"Silence":      func(cfg *etcd.Config) { cfg.Silence = -1 },
	} {
		cfg := newRig(t, c).cfg
		spoil(&cfg)
		if _, err := etcd.New(cfg); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func clientOf(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}
