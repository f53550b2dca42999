package promote_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
)

// Serve runs until its context ends, over TLS if told so, and can be run again.
func TestServe(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{TLS: true}) // for its certificates
	ca, cert, key := source.TLSFiles()
	dir := t.TempDir()
	rev := fillReplica(t, dir, 100, 8, false)
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	rec := mustPromote(t, cfg)
	url := strings.Replace(localURLs(t, 1)[0], "http", "https", 1)
	var log syncBuffer
	for i := range int64(2) {
		ctx, cancel := context.WithCancel(t.Context())
		err := promote.Serve(ctx, promote.ServeConfig{
			DataDir: promote.EtcdDir(dir, database), Name: rec.Name, ClientURLs: []string{url}, PeerURLs: rec.PeerURLs,
			ClientTLS: transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true},
			Log:       slog.New(slog.NewTextHandler(&log, nil)),
		}, func(*embed.Etcd) {
			defer cancel()
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, TLS: source.TLS(), DialTimeout: patience, Logger: zap.NewNop()})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if got := put(t, c, "new", "1"); got != rev+1+i {
				t.Errorf("write has revision %d, want %d", got, rev+1+i)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := log.String(); !strings.Contains(got, "level=WARN") || strings.Contains(got, "level=ERROR") {
		t.Errorf("a clean stop logs\n%s", got)
	}
}

// syncBuffer keeps what goroutines log.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The promoted etcd takes what an etcd with higher limits than the default took, also
// when it reads it again at its start, and what was set for it.
func TestServeTakesWhatTheSourceTook(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{Args: []string{"--max-request-bytes=33554432", "--max-txn-ops=1000"}})
	dir, peers, urls := t.TempDir(), localURLs(t, 1), localURLs(t, 1)
	big := strings.Repeat("x", 31<<20)
	var ops []clientv3.Op
	for i := range 1000 {
		ops = append(ops, clientv3.OpPut(fmt.Sprint("k", i), "v"))
	}
	write := func(url string) {
		t.Helper()
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: patience, MaxCallSendMsgSize: 64 << 20, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Put(t.Context(), "big", big); err != nil {
			t.Error(err)
		}
		if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Error(err)
		}
	}
	write(source.Endpoints()[0])
	follow(t, source, dir)
	cfg := config(dir)
	cfg.PeerURLs = peers
	rec := mustPromote(t, cfg)
	for range 2 {
		e, err := promote.Start(t.Context(), promote.ServeConfig{
			DataDir: promote.EtcdDir(dir, database), Name: rec.Name, ClientURLs: urls, PeerURLs: peers,
			QuotaBytes: 5 << 30, KeepHistory: 90 * time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		write(urls[0])
		if got := e.Server.Cfg; got.QuotaBackendBytes != 5<<30 || got.AutoCompactionRetention != 90*time.Minute {
			t.Errorf("quota %d, auto-compaction %s", got.QuotaBackendBytes, got.AutoCompactionRetention)
		}
		e.Close()
	}
}

func TestServeRefuses(t *testing.T) {
	dir := t.TempDir()
	fillReplica(t, dir, 100, 8, false)
	cfg := config(dir)
	cfg.PeerURLs = localURLs(t, 1)
	rec := mustPromote(t, cfg)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, test := range map[string]struct {
		change func(*promote.ServeConfig)
		want   string
	}{
		// An etcd without data would begin an empty cluster.
		"no data":          {func(c *promote.ServeConfig) { c.DataDir = t.TempDir() }, "is missing"},
		"no name":          {func(c *promote.ServeConfig) { c.Name = "" }, "Name"},
		"no clients":       {func(c *promote.ServeConfig) { c.ClientURLs = nil }, "ClientURLs"},
		"bad peers":        {func(c *promote.ServeConfig) { c.PeerURLs = []string{"x"} }, "PeerURLs"},
		"bad advertise":    {func(c *promote.ServeConfig) { c.AdvertiseURLs = []string{} }, "AdvertiseURLs"},
		"negative quota":   {func(c *promote.ServeConfig) { c.QuotaBytes = -1 }, "QuotaBytes"},
		"negative history": {func(c *promote.ServeConfig) { c.KeepHistory = -1 }, "KeepHistory"},
		"port is taken":    {func(c *promote.ServeConfig) { c.ClientURLs = []string{"http://" + taken.Addr().String()} }, "in use"},
	} {
		t.Run(name, func(t *testing.T) {
			sc := promote.ServeConfig{DataDir: promote.EtcdDir(dir, database), Name: rec.Name, ClientURLs: localURLs(t, 1), PeerURLs: rec.PeerURLs}
			test.change(&sc)
			e, err := promote.Start(t.Context(), sc)
			if err == nil {
				e.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	// A promoted node whose etcd was removed does not become a mirror again.
	if err := os.Rename(promote.EtcdDir(dir, database), filepath.Join(t.TempDir(), "away")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := promote.Recover(dir, database, nil); err == nil || !strings.Contains(err.Error(), "its etcd is gone") {
		t.Errorf("Recover: %v", err)
	}
}
