package bench

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseUsage(t *testing.T) {
	peak, err := parsePeak([]byte("Name:\thelio\nVmPeak:\t  900 kB\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n"))
	if err != nil || peak != 2<<20 {
		t.Errorf("peak %d, %v; want 2 MiB", peak, err)
	}
	stat := "123 (a) b (c) S 1 123 123 0 -1 4194560 500 0 0 0 250 75 0 0 20 0 9 0 100 0 0\n"
	cpu, err := parseCPU([]byte(stat))
	if err != nil || cpu != 3250*time.Millisecond {
		t.Errorf("processor time %s, %v; want 3.25s", cpu, err)
	}
	for _, bad := range []string{"", "123", "123 (x) S 1 2"} {
		if _, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("stat %q was accepted", bad)
		}
	}
	for _, bad := range []string{"", "VmHWM: 12\n", "VmHWM: x kB\n"} {
		if _, err := parsePeak([]byte(bad)); err == nil {
			t.Errorf("status %q was accepted", bad)
		}
	}
	busy, err := parseBusy([]byte("cpu  100 20 30 4000 500 6 7 8 9 0\ncpu0 1 2 3\n"))
	if err != nil || busy != 1710*time.Millisecond {
		t.Errorf("busy for %s, %v; want 1.71s", busy, err)
	}
	if _, err := parseBusy([]byte("cpu 1 2 3\n")); err == nil {
		t.Error("a short line of /proc/stat was accepted")
	}
	if u := usageOf(t, os.Getpid()); u.peakBytes < 1<<20 {
		t.Errorf("this process has used %+v", u)
	}
}

func TestPinMovesThisProcessAndWhatItStarts(t *testing.T) {
	c, ok := splitCores(t)
	if !ok {
		t.Skip("needs two cores")
	}
	if both := c.etcd.Count() + c.nodes.Count(); both != c.all.Count() {
		t.Errorf("the halves have %d of %d cores", both, c.all.Count())
	}
	t.Cleanup(func() {
		if err := pin(&c.all); err != nil {
			t.Error(err)
		}
	})
	if err := pin(&c.nodes); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), "cat")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{os.Getpid(), child.Process.Pid} {
		if err := pinned(pid, &c.nodes); err != nil {
			t.Error(err)
		}
		if pinned(pid, &c.etcd) == nil {
			t.Errorf("process %d is on the wrong cores and that went unnoticed", pid)
		}
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

func TestCellEndsWhatItStarted(t *testing.T) {
	var order []int
	var dir string
	inCell(t, func(c *cell) {
		dir = c.TempDir()
		c.Cleanup(func() { order = append(order, 1) })
		c.Cleanup(func() {
			if c.Context().Err() == nil {
				t.Error("the context goes on during the cleanups")
			}
			order = append(order, 2)
		})
		if c.Context().Err() != nil {
			t.Error("the context has ended before the cell")
		}
	})
	if len(order) != 2 || order[0] != 2 {
		t.Errorf("cleanups ran in order %v", order)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
}
