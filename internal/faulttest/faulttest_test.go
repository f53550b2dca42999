package faulttest_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heliograph/heliograph/internal/faulttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 30 * time.Second       // for what has to happen
	glance   = 200 * time.Millisecond // for what must not
)

// What was fsynced is there after a cut, and what was not is gone, whole files and
// appended bytes.
func TestDiskLosesWhatWasNotFsynced(t *testing.T) {
	d := faulttest.NewDisk(t, 64<<20)
	cmd := d.Command("sh", "-c", `cd "$0" && echo kept > kept && sync && echo lost >> kept && echo lost > lost && echo done && exec sleep 1000`, d.Path())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "done\n" {
		t.Errorf("%q, %v", line, err)
	}
	d.Cut(cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	d.WaitDetached()
	found := t.TempDir()
	d.Run("cp", "-r", d.Path()+"/.", found)
	if got, err := os.ReadFile(filepath.Join(found, "kept")); string(got) != "kept\n" {
		t.Errorf("kept: %q, %v", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(found, "lost")); len(got) > 0 {
		t.Errorf("lost: %q, %v", got, err)
	}
}

func TestCutPowerRefusesEverythingElse(t *testing.T) {
	dir := t.TempDir()
	if err := faulttest.CutPower(dir); err == nil {
		t.Fatal("the file system of the tests was shut down")
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// echo starts a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // the end of the test waits for it
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c) // one at a time
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String()
}

// say sends something and returns what comes back within a time.
func say(c net.Conn, within time.Duration) (string, error) {
	c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "", err
	}
	buf := make([]byte, 5)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestTCPRelay(t *testing.T) {
	r := faulttest.NewTCPRelay(t, echo(t))
	c := dial(t, "tcp", r.Addr())
	if got, err := say(c, patience); got != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	r.Silence()
	for _, c := range []net.Conn{c, dial(t, "tcp", r.Addr())} {
		if got, err := say(c, glance); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("in silence: %q, %v", got, err)
		}
	}
	r.Heal()
	if got, err := say(c, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection from before the silence: %q, %v", got, err)
	}
	if got, err := say(dial(t, "tcp", r.Addr()), patience); got != "hello" {
		t.Errorf("healed: %q, %v", got, err)
	}
	r.Refuse()
	if got, err := say(dial(t, "tcp", r.Addr()), patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("refused: %q, %v", got, err)
	}
	r.Heal()
	if got, err := say(dial(t, "tcp", r.Addr()), patience); got != "hello" {
		t.Errorf("healed: %q, %v", got, err)
	}
}

func TestUDPRelay(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r := faulttest.NewUDPRelay(t, server.LocalAddr().String())
	c := dial(t, "udp", r.Addr())
	// arrives reports whether a packet comes through to the server, and one back.
	arrives := func(within time.Duration) (there, back bool) {
		t.Helper()
		c.Write([]byte("hello"))
		server.SetDeadline(time.Now().Add(within))
		buf := make([]byte, 16)
		_, from, err := server.ReadFrom(buf)
		if err != nil {
			return false, false
		}
		server.WriteTo([]byte("hi"), from)
		c.SetReadDeadline(time.Now().Add(within))
		_, err = c.Read(buf)
		return true, err == nil
	}
	for _, tt := range []struct{ toServer, toClients bool }{{}, {true, false}, {false, true}, {true, true}, {}} {
		r.Lose(tt.toServer, tt.toClients)
		within := glance
		if !tt.toServer && !tt.toClients {
			within = patience
		}
		there, back := arrives(within)
		if there == tt.toServer || there && back == tt.toClients {
			t.Errorf("%+v: there %v, back %v", tt, there, back)
		}
	}
}

// Of what a server sends at once, a limited relay lets the burst through.
func TestUDPRelayLimit(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r := faulttest.NewUDPRelay(t, server.LocalAddr().String())
	r.Limit(1)
	c := dial(t, "udp", r.Addr())
	c.Write([]byte("hello"))
	buf := make([]byte, 2048)
	server.SetDeadline(time.Now().Add(patience))
	_, from, err := server.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	const sent = 50 // KiB
	for range sent {
		server.WriteTo(buf[:1024], from)
	}
	got := 0
	for c.SetDeadline(time.Now().Add(patience)); ; c.SetDeadline(time.Now().Add(glance)) {
		n, err := c.Read(buf)
		if err != nil {
			break
		}
		got += n
	}
	if got == 0 || got > 16<<10 {
		t.Errorf("%d bytes of %d came through", got, sent<<10)
	}
}
