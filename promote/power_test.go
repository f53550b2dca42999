package promote_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph/promote"
)

// Further orders to the child: the power fails instead, and so long after the step.
const (
	childPowerEnv = "HELIOGRAPH_PROMOTE_TEST_POWER"
	childAfterEnv = "HELIOGRAPH_PROMOTE_TEST_AFTER"
)

// Of ext4: from now on nothing reaches the disk, the journal included.
const (
	ioctlShutdown     = 0x8004587d // FS_IOC_SHUTDOWN
	shutdownNoLogSync = 2
)

// cutPower loses what the file system of dir has not been told to keep, and ends
// the process.
func cutPower(dir string) {
	f, err := os.Open(dir)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, shutdownNoLogSync)
	}
	if err != nil {
		fmt.Println("error: shutdown:", err)
		os.Exit(1)
	}
	os.Exit(3)
}

// disk is a file system in a file. It is mounted only in the processes that use
// it, and goes with them.
type disk struct {
	t           *testing.T
	image, root string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "disk.img"), root: t.TempDir()}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 640<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v\n%s", err, out)
	}
	if out, err := d.command("true").CombinedOutput(); err != nil {
		t.Skipf("needs loop mounts in a mount namespace: %v\n%s", err, out)
	}
	return d
}

// command returns a command for which the disk is mounted at root.
func (d *disk) command(name string, args ...string) *exec.Cmd {
	const script = `mount -o loop "$1" "$2" && shift 2 && exec "$@"`
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh", d.image, d.root, name}, args...)...)
}

func (d *disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := d.command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// promoteAndCut promotes on the disk until the power fails; false if it did not.
func (d *disk) promoteAndCut(step string, after time.Duration, bump int64) bool {
	d.t.Helper()
	data := filepath.Join(d.root, "data")
	cmd := d.command(os.Args[0])
	cmd.Env = append(os.Environ(), childDirEnv+"="+data, childStepEnv+"="+step, childPowerEnv+"=1",
		childAfterEnv+"="+after.String(), fmt.Sprintf("%s=%d", childBumpEnv, bump))
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 3 && code != 0 {
		// After the cut, the promotion may fail before the process ends.
		d.t.Logf("the child ended with %v:\n%s", err, out)
	}
	return err != nil
}

// Power loss at each step, and at random moments after them: before the commit is
// durable a mirror, after it a promoted node.
func TestPowerLoss(t *testing.T) {
	_, replica, want := replicaOf(t, 500)
	d := newDisk(t)
	rnd := seeded(t)

	type cut struct {
		step  string
		after time.Duration
	}
	var cuts []cut
	for _, step := range promote.Steps {
		cuts = append(cuts, cut{step: step})
	}
	random := 20
	if testing.Short() {
		random = 4
	}
	for range random {
		cuts = append(cuts, cut{promote.Steps[rnd.IntN(4)], time.Duration(1 + rnd.Int64N(int64(10*time.Millisecond)))})
	}
	mirrors, promoted := 0, 0
	for i, c := range cuts {
		want.bump = int64(i%2) * 1000
		d.run("sh", "-c", `rm -rf "$1/data" && cp -r "$0" "$1/data" && sync`, replica, d.root)
		if !d.promoteAndCut(c.step, c.after, want.bump) {
			continue // it was done before
		}
		dir := filepath.Join(t.TempDir(), "data")
		d.run("cp", "-r", filepath.Join(d.root, "data"), dir)
		got := want.check(t, dir)
		t.Logf("power lost %v after %s: promoted %v", c.after, c.step, got)
		done := slices.Index(promote.Steps, c.step) >= slices.Index(promote.Steps, "committed")
		if done && !got {
			t.Errorf("lost %v after %s: what was committed is gone", c.after, c.step)
		}
		if c.after == 0 && got != done {
			t.Errorf("lost at %s: promoted %v, want %v", c.step, got, done)
		}
		if got {
			promoted++
		} else {
			mirrors++
		}
	}
	t.Logf("%d cuts left %d mirrors and %d promoted nodes", mirrors+promoted, mirrors, promoted)
	if mirrors < 2 || promoted < 4 {
		t.Error("too little happened")
	}
}
