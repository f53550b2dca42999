package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// cores are two sets of processor cores that share none: one for the etcd and
// its writers, one for the nodes that mirror it.
type cores struct {
	all, etcd, nodes unix.CPUSet
}

// splitCores halves the cores that this process may use. ok is false if there are
// fewer than two.
func splitCores(tb testing.TB) (c cores, ok bool) {
	tb.Helper()
	if err := unix.SchedGetaffinity(0, &c.all); err != nil {
		tb.Fatalf("processor affinity: %v", err)
	}
	n := c.all.Count()
	given := 0
	for cpu := 0; given < n; cpu++ {
		if !c.all.IsSet(cpu) {
			continue
		}
		if given < n-n/2 {
			c.etcd.Set(cpu)
		} else {
			c.nodes.Set(cpu)
		}
		given++
	}
	return c, n >= 2
}

// pin moves this process to a set of cores. A process that it starts from then on
// inherits the set and sizes itself for it.
func pin(set *unix.CPUSet) error {
	for {
		moved, err := pinThreads(set)
		if err != nil {
			return err
		}
		if !moved {
			break // every thread is on the set, and new ones inherit it
		}
	}
	runtime.SetDefaultGOMAXPROCS()
	return nil
}

func pinThreads(set *unix.CPUSet) (moved bool, err error) {
	threads, err := threadsOf(os.Getpid())
	if err != nil {
		return false, err
	}
	for _, tid := range threads {
		var now unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &now); errors.Is(err, unix.ESRCH) {
			continue // it has ended
		} else if err != nil {
			return false, fmt.Errorf("affinity of thread %d: %w", tid, err)
		}
		if now == *set {
			continue
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, fmt.Errorf("set affinity of thread %d: %w", tid, err)
		}
		moved = true
	}
	return moved, nil
}

// pinned checks that every thread of a process is on that set.
func pinned(pid int, set *unix.CPUSet) error {
	threads, err := threadsOf(pid)
	if err != nil {
		return err
	}
	for _, tid := range threads {
		var now unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &now); errors.Is(err, unix.ESRCH) {
			continue
		} else if err != nil {
			return fmt.Errorf("affinity of thread %d: %w", tid, err)
		}
		if now != *set {
			return fmt.Errorf("thread %d of process %d is not on its cores", tid, pid)
		}
	}
	return nil
}

func threadsOf(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, fmt.Errorf("threads of process %d: %w", pid, err)
	}
	var threads []int
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("threads of process %d: %w", pid, err)
		}
		threads = append(threads, tid)
	}
	return threads, nil
}
