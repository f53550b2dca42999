package promote_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/heliograph/heliograph/internal/faulttest"
	"github.com/heliograph/heliograph/promote"
)

// Further orders to the child: the power fails instead, and so long after the step.
const (
	childPowerEnv = "HELIOGRAPH_PROMOTE_TEST_POWER"
	childAfterEnv = "HELIOGRAPH_PROMOTE_TEST_AFTER"
)

// cutPower loses what the file system of dir has not been told to keep, and ends
// the process.
func cutPower(dir string) {
	if err := faulttest.CutPower(dir); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(3)
}

// promoteAndCut promotes what is on the disk until the power fails; false if it did
// not.
func promoteAndCut(t *testing.T, d *faulttest.Disk, step string, after time.Duration, bump int64) bool {
	t.Helper()
	cmd := d.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDirEnv+"="+d.Path("data"), childStepEnv+"="+step, childPowerEnv+"=1",
		childAfterEnv+"="+after.String(), fmt.Sprintf("%s=%d", childBumpEnv, bump))
	out, err := cmd.CombinedOutput()
	d.WaitDetached()
	if code := cmd.ProcessState.ExitCode(); code != 3 && code != 0 {
		// After the cut, the promotion may fail before the process ends.
		t.Logf("the child ended with %v:\n%s", err, out)
	}
	if bytes.Contains(out, []byte("panic: ")) {
		t.Errorf("a disk that fails made it panic:\n%s", out)
	}
	return err != nil
}

// Power loss at each step, and at random moments after them: before the commit is
// durable a mirror, after it a promoted node.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	_, replica, want := replicaOf(t, 500)
	d := faulttest.NewDisk(t, 640<<20)
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
		d.Run("sh", "-c", `rm -rf "$1" && cp -r "$0" "$1" && sync`, replica, d.Path("data"))
		if !promoteAndCut(t, d, c.step, c.after, want.bump) {
			continue // it was done before
		}
		dir := filepath.Join(t.TempDir(), "data")
		d.Run("cp", "-r", d.Path("data"), dir)
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
