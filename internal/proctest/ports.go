package proctest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// FreePorts returns n different ports of 127.0.0.1 that nothing listens on, by
// TCP or UDP, and that no other test gets, in this process or another, before tb
// ends. They lie below the range from which the kernel takes ports by itself, so that
// a process that is down finds its port free when it is restarted.
func FreePorts(tb testing.TB, n int) []int {
	tb.Helper()
	const first, last, tries = 10_000, 32_000, 10_000
	table, err := sharedPorts()
	if err != nil {
		tb.Fatal(err)
	}
	var ports []int
	for range tries {
		if len(ports) == n {
			return ports
		}
		port := first + rand.IntN(last-first)
		if !table.take(port) {
			continue
		}
		tb.Cleanup(func() { table.release(port) })
		if unused(port) {
			ports = append(ports, port)
		}
	}
	tb.Fatalf("found %d of %d free ports", len(ports), n)
	return nil
}

// unused reports whether nothing listens on the port.
func unused(port int) bool {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return errors.Join(l.Close(), err) == nil
	}
	return errors.Join(l.Close(), u.Close()) == nil
}

// sharedPorts is the table of all test processes of this user.
var sharedPorts = sync.OnceValues(func() (*portTable, error) {
	return openPortTable(filepath.Join(os.TempDir(), fmt.Sprintf("heliograph-test-ports-%d", os.Getuid())))
})

// portTable says which ports are taken: byte N of its file is locked while port N is.
// The locks of a process end with it.
type portTable struct {
	file *os.File

	mu   sync.Mutex
	held map[int]bool // by this process
}

func openPortTable(path string) (*portTable, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &portTable{file: f, held: make(map[int]bool)}, nil
}

// take reports whether the port was free, and is taken now.
func (t *portTable) take(port int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[port] || t.lock(port, unix.F_WRLCK) != nil {
		return false
	}
	t.held[port] = true
	return true
}

func (t *portTable) release(port int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.held, port)
	_ = t.lock(port, unix.F_UNLCK) // at worst it is taken until the process ends
}

func (t *portTable) lock(port int, how int16) error {
	return unix.FcntlFlock(t.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: how, Start: int64(port), Len: 1})
}
