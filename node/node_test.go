package node_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/node"
)

func TestAdmin(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	rev := etcdtest.Fill(t, etcd.Client(t), 50)
	etcd.Member(0).Pause() // so that there is nothing to follow yet
	cfg := newPKI(t).source(t, etcd.Endpoints()[0])
	cfg.ListenAdmin = "127.0.0.1:0"
	n := open(t, cfg)
	stop := run(t, n)
	at := n.Addrs()

	for _, where := range []string{at.Admin, at.Socket} {
		if code, body := get(t, where, "/healthz"); code != http.StatusOK || body != "ok\n" {
			t.Errorf("healthz: %d %q", code, body)
		}
		code, body := get(t, where, "/readyz")
		if code != http.StatusServiceUnavailable || !strings.HasPrefix(body, "prod-us/default is disconnected: ") ||
			len(body) < len("prod-us/default is disconnected: ")+5 {
			t.Errorf("readyz: %d %q", code, body)
		}
		if _, body := get(t, where, "/metrics"); !strings.Contains(body, `heliograph_state{cluster="prod-us",database="default",state="disconnected"} 1`) {
			t.Errorf("metrics do not say disconnected:\n%s", body)
		}
		if code, _ := get(t, where, "/v2/status"); code != http.StatusNotFound {
			t.Errorf("an unknown path: %d", code)
		}
	}

	etcd.Member(0).Resume()
	waitFor(t, "ready", func() bool {
		code, _ := get(t, at.Admin, "/readyz")
		return code == http.StatusOK
	})
	code, body := get(t, at.Socket, "/v1/status")
	list, err := heliograph.ParseStatuses([]byte(body))
	if code != http.StatusOK || err != nil || len(list) != 1 {
		t.Fatalf("status: %d %q, %v", code, body, err)
	}
	s := list[0]
	if s.Status != heliograph.Following || s.Why != "" || s.AppliedRevision != rev || s.HeadRevision != rev || s.BehindRevisions != 0 ||
		s.LagMS != 0 || s.Role != heliograph.RoleSource || s.Upstream != etcd.Endpoints()[0] {
		t.Errorf("status %+v, want following at %d", s, rev)
	}
	_, body = get(t, at.Admin, "/metrics")
	for _, want := range []string{
		`heliograph_state{cluster="prod-us",database="default",state="following"} 1`,
		`heliograph_state{cluster="prod-us",database="default",state="disconnected"} 0`,
		`heliograph_behind_revisions{cluster="prod-us",database="default"} 0`,
		"\nheliograph_store_", "\nheliograph_source_", "\nheliograph_etcd_", "\ngo_goroutines ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	stop()
}

// A node that was stopped goes on from what it had made durable.
func TestRestartResumes(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	rev := etcdtest.Fill(t, client, 500)
	p := newPKI(t)
	var us, eu journal
	source := p.source(t, etcd.Endpoints()[0])
	source.Log = us.logger()
	n := open(t, source)
	source.Listen = n.Addrs().Mirrors // the same one after the restart
	mirror := p.mirror(t, source.Listen)
	mirror.Log = eu.logger()
	m := open(t, mirror)
	stopSource, stopMirror := run(t, n), run(t, m)
	waitAt(t, n, rev)
	waitAt(t, m, rev)
	rev = etcdtest.Fill(t, client, 200) // by following
	waitAt(t, m, rev)
	if hashOf(t, m, rev) != hashOf(t, n, rev) {
		t.Error("mirror and source differ")
	}
	stopMirror()
	stopSource()

	end := etcdtest.Fill(t, client, 300) // while both are away
	n, m = open(t, source), open(t, mirror)
	for name, s := range map[string]heliograph.Status{"source": n.Status()[0], "mirror": m.Status()[0]} {
		if s.AppliedRevision != rev || s.DurableRevision != rev {
			t.Errorf("%s comes back at revision %d, durable %d, want %d", name, s.AppliedRevision, s.DurableRevision, rev)
		}
	}
	run(t, n)
	run(t, m)
	waitAt(t, n, end)
	waitAt(t, m, end)
	want, compacted := etcd.HashKV(t, end)
	for name, node := range map[string]*node.Node{"source": n, "mirror": m} {
		h, err := node.HashKV(t.Context(), end)
		if err != nil || h.Hash != want || h.CompactRevision != compacted {
			t.Errorf("%s: %+v, %v; etcd has %08x, compacted at %d", name, h, err, want, compacted)
		}
	}
	if a, b := us.snapshots(), eu.snapshots(); a != 1 || b != 1 {
		t.Errorf("%d and %d snapshots, want one each", a, b)
	}
}

// A mirror whose source is of another mind says so at once, and why.
func TestMirrorSaysWhyItIsRefused(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	p := newPKI(t)
	source := p.source(t, etcd.Endpoints()[0])
	source.Allow = []string{"somebody-else"}
	n := open(t, source)
	run(t, n)
	waitAt(t, n, 1)
	m := open(t, p.mirror(t, n.Addrs().Mirrors))
	run(t, m)
	waitFor(t, "refused", func() bool {
		s := m.Status()[0]
		return s.Status == heliograph.Disconnected && strings.Contains(s.Why, "not authorized")
	})
}

// Run ends although nothing was ever reached.
func TestRunEndsWithoutAnUpstream(t *testing.T) {
	n := open(t, newPKI(t).mirror(t, "127.0.0.1:1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Run(ctx); err != nil {
		t.Error(err)
	}
}
