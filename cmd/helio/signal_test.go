package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/certs"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/proctest"
)

const (
	stopLimit  = 5 * time.Second // from SIGTERM to the end of a node
	statusWait = 30 * time.Second
)

// process is a helio that runs beside the test.
type process struct {
	*proctest.Process
	dir    string
	listen string // for mirrors
}

// startNode starts 'helio source' or 'helio mirror' with a certificate of the CA
// in pki.
func startNode(t *testing.T, pki string, role heliograph.Role, args ...string) *process {
	t.Helper()
	binary, err := exec.LookPath("helio") // put there by testscript.Main
	if err != nil {
		t.Fatal(err)
	}
	files, err := certs.Issue(certs.IssueConfig{Dir: pki, Cluster: "prod", Role: role, Name: string(role)})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{dir: filepath.Join(t.TempDir(), "data")}
	args = append([]string{string(role), "--cluster", "prod", "--data-dir", p.dir, "--listen-admin", "",
		"--cert", files.Cert, "--key", files.Key, "--ca", files.CA}, args...)
	if role == heliograph.RoleSource {
		p.listen = fmt.Sprintf("127.0.0.1:%d", proctest.FreePorts(t, 1)[0])
		args = append(args, "--listen", p.listen)
	}
	p.Process = proctest.New(t, string(role), filepath.Join(t.TempDir(), "log"), binary, args...)
	p.Start()
	return p
}

func newCA(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	if err := certs.Init(dir, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// await waits for a status that ok accepts.
func (p *process) await(t *testing.T, what string, ok func(heliograph.Status) bool) {
	t.Helper()
	client, err := (&adminFlags{admin: "unix:" + filepath.Join(p.dir, "admin.sock")}).client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	ctx, cancel := context.WithTimeout(t.Context(), statusWait)
	defer cancel()
	var last []heliograph.Status
	for ctx.Err() == nil {
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		if raw, err := fetchStatus(ctx, client); err == nil {
			if last, err = heliograph.ParseStatuses(raw); err == nil && len(last) == 1 && ok(last[0]) {
				return
			}
		}
		time.Sleep(5 * time.Millisecond) // the pace of asking
	}
	t.Fatalf("%s is not %s: %+v", p.Name(), what, last)
}

func following(s heliograph.Status) bool { return s.Status == heliograph.Following }

// halfway is a bootstrap that has begun and is not over.
func halfway(s heliograph.Status) bool {
	return s.Status == heliograph.Bootstrapping && s.BytesDone > 0 && s.BytesDone < s.BytesTotal
}

// stop ends p with SIGTERM and wants a clean end.
func (p *process) stop(t *testing.T) {
	t.Helper()
	code, took := p.Stop(stopLimit)
	t.Logf("%s ended after %s", p.Name(), took)
	log, err := os.ReadFile(p.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if code != exitDone || !bytes.Contains(log, []byte(`msg="node stopped"`)) {
		t.Errorf("%s: exit code %d, log:\n%s", p.Name(), code, log)
	}
}

func TestSIGTERMUnderLoad(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	client := etcd.Client(t)
	pki := newCA(t)
	clients := fmt.Sprintf("127.0.0.1:%d", proctest.FreePorts(t, 1)[0])
	source := startNode(t, pki, heliograph.RoleSource, "--etcd", etcd.Endpoints()[0])
	mirror := startNode(t, pki, heliograph.RoleMirror, "--from", "helio://"+source.listen+"/prod", "--listen-clients", clients)
	source.await(t, "following", following)
	mirror.await(t, "following", following)
	etcdtest.StartLoad(t, client, etcdtest.LoadOptions{Workers: 16, Deletes: true, Txns: true, Leases: true})

	// A client whose watch never ends by itself.
	watcher, err := clientv3.New(clientv3.Config{Endpoints: []string{clients}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	events := watcher.Watch(t.Context(), "load/", clientv3.WithPrefix())
	first, err := next(events)
	if err != nil {
		t.Fatal(err)
	}
	from := first.Header.Revision
	mirror.await(t, "moving", func(s heliograph.Status) bool { return s.AppliedRevision > from+500 })
	mirror.stop(t)
	source.stop(t)
}

// A node that is told to end in the middle of a snapshot ends, and leaves no
// half of it behind.
func TestSIGTERMWhileBootstrapping(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	fillRandom(t, etcd, 24)
	pki := newCA(t)

	t.Run("source", func(t *testing.T) {
		slow := slowTCP(t, strings.TrimPrefix(etcd.Endpoints()[0], "http://"))
		source := startNode(t, pki, heliograph.RoleSource, "--etcd", "http://"+slow)
		source.await(t, "receiving a snapshot", halfway)
		source.stop(t)
		wantNoData(t, source.dir)
	})
	t.Run("mirror", func(t *testing.T) {
		source := startNode(t, pki, heliograph.RoleSource, "--etcd", etcd.Endpoints()[0])
		source.await(t, "following", following)
		slow := slowUDP(t, source.listen)
		mirror := startNode(t, pki, heliograph.RoleMirror, "--from", "helio://"+slow+"/prod")
		mirror.await(t, "receiving a snapshot", halfway)
		mirror.stop(t)
		wantNoData(t, mirror.dir)
		source.stop(t)
	})
}

// fillRandom gives etcd so many MiB of what cannot be compressed.
func fillRandom(t *testing.T, etcd *etcdtest.Cluster, mib int) {
	t.Helper()
	client := etcd.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), statusWait)
	defer cancel()
	value := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	for i := range mib {
		_, _ = random.Read(value) // never fails
		if _, err := client.Put(ctx, fmt.Sprint("random/", i), string(value)); err != nil {
			t.Fatal(err)
		}
	}
}

func wantNoData(t *testing.T, dir string) {
	t.Helper()
	for _, pattern := range []string{"*.db", "*.partial"} {
		if found, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(found) > 0 {
			t.Errorf("left behind: %v, %v", found, err)
		}
	}
}

// A node waits a moment for requests to its admin API. Who does not want to wait
// for that sends a second signal.
func TestSecondSignalKills(t *testing.T) {
	pki := newCA(t)
	// A busy machine may let a node end before the second signal comes.
	const tries = 10
	for range tries {
		node := startNode(t, pki, heliograph.RoleSource, "--etcd", "http://127.0.0.1:1", "--listen-clients", "")
		node.await(t, "disconnected", func(s heliograph.Status) bool { return s.Status == heliograph.Disconnected })
		if killedBySecond(t, node) {
			return
		}
	}
	t.Errorf("the second signal killed none of %d nodes", tries)
}

func killedBySecond(t *testing.T, p *process) bool {
	t.Helper()
	socket := filepath.Join(p.dir, "admin.sock")
	// The first request of a connection, and it never ends: one after others
	// would count as idle until it is whole.
	if _, err := io.WriteString(dialUnix(t, socket), "GET /healthz HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	// Connections are accepted in order: an answer on the next one says that the
	// node knows of the first.
	next := dialUnix(t, socket)
	if _, err := io.WriteString(next, "GET /healthz HTTP/1.1\r\nHost: helio\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(next, make([]byte, len("HTTP/1.1 200"))); err != nil {
		t.Fatal(err)
	}
	exited, pid := p.Exited(), p.PID()
	deadline := time.After(stopLimit)
	kill := func() { _ = syscall.Kill(pid, syscall.SIGTERM) } // it may be gone already
	kill()
	for {
		log, err := os.ReadFile(p.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(log, []byte("a second signal ends it at once")) {
			break
		}
		select {
		case <-exited:
			return false
		case <-deadline:
			t.Fatal("the first signal was not heard")
		case <-time.After(time.Millisecond):
		}
	}
	kill()
	select {
	case <-exited:
	case <-deadline:
		t.Fatal("two signals did not end it")
	}
	return strings.Contains(p.Err().Error(), syscall.SIGTERM.String())
}

// dialUnix connects to a socket until the end of the test.
func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// slowRate is what a slow network lets through, in bytes per second.
const slowRate = 2 << 20

// slowTCP forwards connections to target, at slowRate from there.
func slowTCP(t *testing.T, target string) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	t.Cleanup(func() { cancel(); lis.Close(); group.Wait() })
	group.Go(func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
			group.Go(func() { defer out.Close(); _, _ = io.Copy(out, in) })
			group.Go(func() { defer stop(); defer in.Close(); crawl(in, out) })
		}
	})
	return lis.Addr().String()
}

func crawl(to io.Writer, from io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
		pause(n)
	}
}

// pause is the time that n bytes take on a slow network.
func pause(n int) { time.Sleep(time.Duration(n) * time.Second / slowRate) }

// slowUDP forwards the packets of one client to target, and back at slowRate;
// what does not fit into the socket's buffer is lost.
func slowUDP(t *testing.T, target string) string {
	t.Helper()
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("udp", target)
	if err != nil {
		t.Fatal(err)
	}
	var (
		group  sync.WaitGroup
		mu     sync.Mutex
		client net.Addr
	)
	t.Cleanup(func() { front.Close(); back.Close(); group.Wait() })
	group.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, addr, err := front.ReadFrom(buf)
			if err != nil {
				return
			}
			mu.Lock()
			client = addr
			mu.Unlock()
			_, _ = back.Write(buf[:n])
		}
	})
	group.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			to := client
			mu.Unlock()
			_, _ = front.WriteTo(buf[:n], to)
			pause(n)
		}
	})
	return front.LocalAddr().String()
}
