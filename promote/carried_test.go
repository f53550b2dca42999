package promote_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
)

// Users, roles and passwords are those of the source.
func TestAuthIsKept(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, source.Client(t), 50)
	source.EnableAuth(t, "secret")
	dir := t.TempDir()
	rev := followAs(t, source, dir, "secret")
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	s := serve(t, dir, mustPromote(t, cfg))
	defer s.stop()
	if _, err := s.client.Get(t.Context(), "x"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		t.Errorf("without a user: %v", err)
	}
	if _, err := clientv3.New(clientv3.Config{Endpoints: []string{s.url}, Username: "root", Password: "wrong", DialTimeout: patience}); !errors.Is(err, rpctypes.ErrAuthFailed) {
		t.Errorf("with a wrong password: %v", err)
	}
	c := client(t, s.url, "secret")
	if got := put(t, c, "new", "1"); got != rev+1 {
		t.Errorf("write as root has revision %d, want %d", got, rev+1)
	}
}

// The source was full; the promoted has its own quota and no alarm.
func TestAlarmsGo(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{Args: []string{"--quota-backend-bytes=4194304"}})
	c := source.Client(t)
	full := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for {
			if _, err := c.Put(ctx, "big", strings.Repeat("x", 200_000)); err != nil {
				return err
			}
		}
	}()
	if !errors.Is(full, rpctypes.ErrNoSpace) {
		t.Fatalf("the source is not full: %v", full)
	}
	alarms, err := c.AlarmList(t.Context())
	if err != nil || len(alarms.Alarms) != 1 {
		t.Fatalf("alarms of the source: %v, %v", alarms, err)
	}
	dir := t.TempDir()
	rev := follow(t, source, dir)
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	s := serve(t, dir, mustPromote(t, cfg))
	defer s.stop()
	if alarms, err = s.client.AlarmList(t.Context()); err != nil || len(alarms.Alarms) != 0 {
		t.Errorf("alarms: %v, %v", alarms, err)
	}
	if got := put(t, s.client, "new", "1"); got != rev+1 {
		t.Errorf("write has revision %d, want %d", got, rev+1)
	}
}

// The database remembers where it forked, through etcd's own snapshots too, and a
// second promotion adds to it.
func TestForkTravels(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, source.Client(t), 100)
	dir := t.TempDir()
	follow(t, source, dir)
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	rec := mustPromote(t, cfg)
	s := serve(t, dir, rec)
	put(t, s.client, "new", "1")
	saved := filepath.Join(t.TempDir(), "saved.db")
	tool(t, "etcdctl", "--endpoints="+s.url, "snapshot", "save", saved)
	s.stop()
	for _, path := range []string{saved, filepath.Join(promote.EtcdDir(dir, database), "member", "snap", "db")} {
		forks, err := promote.Forks(path)
		if err != nil || len(forks) != 1 || forks[0] != rec.Fork || forks[0].Revision != rev {
			t.Errorf("%s: forks %+v, %v; want %+v", path, forks, err, rec.Fork)
		}
	}
	if forks, err := promote.Forks(source.Save(t)); err != nil || len(forks) != 0 {
		t.Errorf("forks of the source: %v, %v", forks, err)
	}
}
