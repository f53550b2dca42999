// Package proctest runs real processes for tests, and kills, pauses and restarts
// them. No process outlives the test binary.
package proctest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Process is a program with fixed arguments that may run or not. Its methods
// belong to the goroutine of the test.
type Process struct {
	tb      testing.TB
	name    string
	logPath string
	binary  string
	args    []string

	cmd    *exec.Cmd     // nil while it does not run
	exited chan struct{} // closed when cmd has been waited for
}

// New returns a process that does not run yet. What it prints is appended to
// logPath, whose folder it runs in. It is killed when the test ends; if the test
// has failed, the tail of the log is shown.
func New(tb testing.TB, name, logPath, binary string, args ...string) *Process {
	p := &Process{tb: tb, name: name, logPath: logPath, binary: binary, args: args}
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() {
			tb.Logf("log of %s ends:\n%s", p.name, p.logTail())
		}
	})
	return p
}

// Name returns the process's name in messages.
func (p *Process) Name() string { return p.name }

// LogPath returns the file that the process prints to, over all its lives.
func (p *Process) LogPath() string { return p.logPath }

// Running reports whether the process was started and not ended by this package.
func (p *Process) Running() bool { return p.cmd != nil }

// Exited returns a channel that is closed when the process has ended; nil while
// it does not run.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// PID returns the process id; 0 while the process does not run.
func (p *Process) PID() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Start starts the process.
func (p *Process) Start() {
	p.tb.Helper()
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.tb.Fatal(err)
	}
	defer log.Close() // the process has its own descriptor
	cmd := exec.Command(p.binary, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = filepath.Dir(p.logPath)
	// A test binary that is killed takes its processes along. The kernel sends
	// the signal when the thread that started the process ends, so that
	// thread stays with the goroutine that waits for the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error), make(chan struct{})
	go func() { // ends with the process; Kill and Stop wait for it
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		p.tb.Fatalf("start %s: %v", p.name, err)
	}
	p.cmd, p.exited = cmd, exited
}

// Kill ends the process with SIGKILL, paused or not, and waits for it. One that
// does not run stays that way.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill() // fails only if it has exited already
	<-p.exited
	p.cmd, p.exited = nil, nil
}

// Stop ends the process with SIGTERM, waits for it, and returns its exit code
// and how long it took. One that takes longer than limit is killed and fails
// the test.
func (p *Process) Stop(limit time.Duration) (code int, took time.Duration) {
	p.tb.Helper()
	start := time.Now()
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		p.Kill()
		p.tb.Fatalf("%s did not end within %s of SIGTERM", p.name, limit)
	}
	code = p.cmd.ProcessState.ExitCode()
	p.cmd, p.exited = nil, nil
	return code, time.Since(start)
}

// Restart starts the process again, killing it first if it runs.
func (p *Process) Restart() {
	p.tb.Helper()
	p.Kill()
	p.Start()
}

// Pause stops the process with SIGSTOP, and returns when every thread of it stands
// still: its connections stay open and silent.
func (p *Process) Pause() {
	p.tb.Helper()
	p.signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(pauseWait); !p.stopped(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			p.tb.Fatalf("%s still runs %s after SIGSTOP", p.name, pauseWait)
		}
	}
}

// pauseWait is how long a process may take until it stands still.
const pauseWait = 10 * time.Second

// stopped reports whether every thread of the process is stopped, or has ended.
func (p *Process) stopped() bool {
	p.tb.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
	if err != nil {
		p.tb.Fatal(err)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The state follows the name, which is in brackets.
		_, after, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(after, "T") {
			return false
		}
	}
	return len(threads) > 0
}

// Resume lets a paused process go on.
func (p *Process) Resume() {
	p.tb.Helper()
	p.signal(syscall.SIGCONT)
}

func (p *Process) signal(sig syscall.Signal) {
	p.tb.Helper()
	if p.cmd == nil {
		p.tb.Fatalf("%s does not run: cannot send %s", p.name, sig)
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.tb.Fatalf("send %s to %s: %v", sig, p.name, err)
	}
}

// Err returns why the process has ended by itself; nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s has exited: %s", p.name, p.cmd.ProcessState)
	default:
		return nil
	}
}

// logTail returns the last bytes of the log.
func (p *Process) logTail() string {
	const tailBytes = 4096
	f, err := os.Open(p.logPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(max(0, size-tailBytes), io.SeekStart)
	}
	tail, _ := io.ReadAll(f)
	return string(tail)
}
