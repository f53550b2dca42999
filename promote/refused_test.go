package promote_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
)

// What is no whole replica, and what makes no sense, is refused before anything
// is changed.
func TestRefused(t *testing.T) {
	t.Parallel()
	source := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, source.Client(t), 200)
	replica := t.TempDir()
	follow(t, source, replica)
	db := string(database) + ".db"

	overwrite := func(offset int64, b []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, db), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(b, offset); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		harm func(t *testing.T, dir string)
		cfg  func(*promote.Config)
		want string
	}{
		"nothing there": {harm: func(t *testing.T, dir string) { remove(t, filepath.Join(dir, db)) }, want: "there is no replica"},
		"a snapshot on its way in": {harm: func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, db), filepath.Join(dir, "default.partial")); err != nil {
				t.Fatal(err)
			}
		}, want: "there is no replica"},
		"cut off": {harm: func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, db), 3*4096); err != nil {
				t.Fatal(err)
			}
		}, want: "cut off"},
		"no database":   {harm: overwrite(0, make([]byte, 4*4096)), want: "invalid database"},
		"foreign etcd":  {harm: func(t *testing.T, dir string) { replace(t, source.Save(t), filepath.Join(dir, db)) }, want: "not a replica"},
		"store is open": {harm: func(t *testing.T, dir string) { keepOpen(t, dir) }, want: "close it first"},
		"etcd without a record": {harm: func(t *testing.T, dir string) {
			if err := os.MkdirAll(promote.EtcdDir(dir, database), 0o700); err != nil {
				t.Fatal(err)
			}
		}, want: "the record"},
		"etcd under way without a record": {harm: func(t *testing.T, dir string) {
			moved := filepath.Join(promote.EtcdDir(dir, database)+".partial", "member", "snap", "db")
			if err := os.MkdirAll(filepath.Dir(moved), 0o700); err != nil {
				t.Fatal(err)
			}
			replace(t, filepath.Join(dir, db), moved)
		}, want: "the record"},
		"record is damaged": {harm: func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, promote.RecordFile), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, want: "is damaged"},
		"no cluster":     {cfg: func(c *promote.Config) { c.Cluster = "" }, want: "Config.Cluster"},
		"no directory":   {cfg: func(c *promote.Config) { c.Dir = "" }, want: "Config.Dir"},
		"bad database":   {cfg: func(c *promote.Config) { c.Database = "../x" }, want: "Config.Database"},
		"bad name":       {cfg: func(c *promote.Config) { c.Name = "a=b" }, want: "Config.Name"},
		"bad peer":       {cfg: func(c *promote.Config) { c.PeerURLs = []string{"a:1"} }, want: "Config.PeerURLs"},
		"no peer":        {cfg: func(c *promote.Config) { c.PeerURLs = []string{} }, want: "Config.PeerURLs"},
		"negative bump":  {cfg: func(c *promote.Config) { c.BumpRevision = -1 }, want: "Config.BumpRevision"},
		"half a second":  {cfg: func(c *promote.Config) { c.LeaseTTL = 500 * time.Millisecond }, want: "Config.LeaseTTL"},
		"negative known": {cfg: func(c *promote.Config) { c.LastKnownRevision = -1 }, want: "Config.LastKnownRevision"},
		"too far":        {cfg: func(c *promote.Config) { c.BumpRevision = 1<<62 - 1 }, want: "cannot be bumped"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			copyTree(t, replica, dir)
			cfg := config(dir)
			if test.harm != nil {
				test.harm(t, dir)
			}
			if test.cfg != nil {
				test.cfg(&cfg)
			}
			before := tree(t, dir)
			_, err := promote.Promote(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if after := tree(t, dir); after != before && test.want != "there is no replica" {
				t.Errorf("the directory was\n%sand is\n%s", before, after)
			}
		})
	}
}

func keepOpen(t *testing.T, dir string) {
	st := openStore(t, dir)
	t.Cleanup(func() { closeStore(t, st) })
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
