package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// clockTick is the unit of processor time in /proc: Linux fixes USER_HZ at 100.
const clockTick = 10 * time.Millisecond

// usage is what a process has used so far.
type usage struct {
	peakBytes int64         // largest resident set
	cpu       time.Duration // user and system
}

// usageOf reads the usage of a running process.
func usageOf(tb testing.TB, pid int) usage {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	var u usage
	if u.peakBytes, err = parsePeak(status); err != nil {
		tb.Fatal(err)
	}
	if u.cpu, err = parseCPU(stat); err != nil {
		tb.Fatal(err)
	}
	return u
}

// parsePeak finds VmHWM in /proc/PID/status.
func parsePeak(status []byte) (int64, error) {
	for line := range bytes.Lines(status) {
		rest, ok := bytes.CutPrefix(line, []byte("VmHWM:"))
		if !ok {
			continue
		}
		fields := strings.Fields(string(rest))
		if len(fields) != 2 || fields[1] != "kB" {
			return 0, fmt.Errorf("status: %q: want a number of kB", line)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("status: %w", err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("status has no VmHWM")
}

// parseCPU adds utime and stime of /proc/PID/stat, its 14th and 15th fields. The
// second is the program's name in parentheses, which may hold anything.
func parseCPU(stat []byte) (time.Duration, error) {
	const utime, stime = 14 - 3, 15 - 3 // counted from the field after the name
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) <= stime {
		return 0, fmt.Errorf("stat: %q is too short", stat)
	}
	var sum time.Duration
	for _, s := range []string{fields[utime], fields[stime]} {
		ticks, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat: %w", err)
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}

// machineCPU reads how long all processors together have been busy, for anybody.
func machineCPU(tb testing.TB) time.Duration {
	tb.Helper()
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		tb.Fatal(err)
	}
	busy, err := parseBusy(stat)
	if err != nil {
		tb.Fatal(err)
	}
	return busy
}

// parseBusy adds the first line of /proc/stat but for its 4th and 5th figures, idle
// and iowait, and the last two, guest time, which user time holds already.
func parseBusy(stat []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("stat: %q: want cpu and eight figures", line)
	}
	var sum time.Duration
	for i, s := range fields[1:9] {
		ticks, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat: %w", err)
		}
		if idle := i == 3 || i == 4; !idle {
			sum += time.Duration(ticks) * clockTick
		}
	}
	return sum, nil
}
