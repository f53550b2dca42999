package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph/internal/etcdtest"
)

// filesystems names the file systems that data is likely to be on.
var filesystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.TMPFS_MAGIC:           "tmpfs",
}

// conditions returns what a reader needs to judge the figures. The load average
// is the one before the benchmark: on a quiet machine it is near 0.
func conditions(tb testing.TB, o options) string {
	tb.Helper()
	disk := "etcd without fsync"
	if o.fsync {
		disk = "etcd with fsync"
	}
	return fmt.Sprintf("%d cores (%s, GOMAXPROCS %d), %s, load average before %s · %s %s/%s · etcd %s · heliograph %s\n"+
		"%d rounds, %d keys, %s of load, %d writers, values of %d bytes · data on %s, %s · %s\n",
		runtime.NumCPU(), fact("/proc/cpuinfo", "model name"), runtime.GOMAXPROCS(0), memory(), loadAverage(),
		runtime.Version(), runtime.GOOS, runtime.GOARCH, etcdtest.Release(), commit(tb),
		o.rounds, o.keys, o.window, writers, valueBytes, filesystem(tb), disk, time.Now().UTC().Format(time.DateOnly))
}

// fact returns the first value with that name in a file of /proc.
func fact(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func memory() string {
	var kib float64
	if _, err := fmt.Sscan(fact("/proc/meminfo", "MemTotal"), &kib); err != nil {
		return "memory unknown"
	}
	return fmt.Sprintf("%.0f GiB", kib/(1<<20))
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func commit(tb testing.TB) string {
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "(no git)"
	}
	return strings.TrimSpace(string(out))
}

func filesystem(tb testing.TB) string {
	tb.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &s); err != nil {
		tb.Fatal(err)
	}
	if name, ok := filesystems[s.Type]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", s.Type)
}
