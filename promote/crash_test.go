package promote_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/promote"
)

// A child promotes the replica in childDirEnv and prints each step as it is
// reached. It ends by itself at the step in childStepEnv, as kill -9 would end it.
const (
	childDirEnv  = "HELIOGRAPH_PROMOTE_TEST_CHILD"
	childStepEnv = "HELIOGRAPH_PROMOTE_TEST_STEP"
	childBumpEnv = "HELIOGRAPH_PROMOTE_TEST_BUMP"
)

func runChild(dir string) int {
	end := func() { os.Exit(3) }
	if os.Getenv(childPowerEnv) != "" {
		end = func() { cutPower(dir) }
	}
	after, _ := time.ParseDuration(os.Getenv(childAfterEnv))
	promote.OnStep(func(s string) {
		fmt.Println(s)
		switch {
		case s != os.Getenv(childStepEnv):
		case after > 0:
			time.AfterFunc(after, end) // ends the process, or the process ends first
		default:
			end()
		}
	})
	cfg := config(dir)
	cfg.BumpRevision, _ = strconv.ParseInt(os.Getenv(childBumpEnv), 10, 64)
	fmt.Println("start")
	if _, err := promote.Promote(context.Background(), cfg); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// outcome is what a crash can leave.
type outcome struct {
	source sum
	rev    int64
	bump   int64
}

// check recovers dir and fails the test unless it is a mirror as before or is
// promoted for good. It reports which.
func (o outcome) check(t *testing.T, dir string) (promoted bool) {
	t.Helper()
	promoted, rec, err := promote.Recover(dir, database, nil)
	if err != nil {
		t.Fatalf("recover: %v\n%s", err, tree(t, dir))
	}
	if again, rec2, err := promote.Recover(dir, database, nil); err != nil || again != promoted || rec2.Token != rec.Token {
		t.Fatalf("recovered twice: %v %v %v", again, rec2, err)
	}
	if _, err := os.Stat(promote.EtcdDir(dir, database) + ".partial"); err == nil {
		t.Fatalf("something is left behind:\n%s", tree(t, dir))
	}
	if !promoted {
		if got, at := mirrorSum(t, dir); got != o.source || at != o.rev {
			t.Fatalf("the mirror has %+v at %d, want %+v at %d", got, at, o.source, o.rev)
		}
		return false
	}
	s := serveDir(t, promote.EtcdDir(dir, database), rec.Name, localURLs(t, 1))
	defer s.stop()
	if o.bump == 0 {
		if got := hash(t, s.client, s.url, o.rev); got != o.source {
			t.Fatalf("the promoted has %+v, want %+v", got, o.source)
		}
	}
	if got, want := put(t, s.client, "new", "1"), o.rev+o.bump+1; got != want {
		t.Fatalf("the first write has revision %d, want %d", got, want)
	}
	return true
}

func child(dir string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childDirEnv+"="+dir), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// replicaOf makes a replica to crash with.
func replicaOf(t *testing.T, revisions int) (*etcdtest.Cluster, string, outcome) {
	t.Helper()
	source := etcdtest.Start(t, etcdtest.Options{})
	etcdtest.Fill(t, source.Client(t), revisions)
	dir := t.TempDir()
	rev := follow(t, source, dir)
	return source, dir, outcome{source: sourceSum(t, source, rev), rev: rev}
}

// Ending at each step leaves a mirror before the commit, and a promoted node after
// it; the mirror goes on following, and can be promoted after all.
func TestEndsAtEachStep(t *testing.T) {
	t.Parallel()
	source, replica, want := replicaOf(t, 500)
	for _, bump := range []int64{0, 1000} {
		want.bump = bump
		wantPromoted := false
		for _, step := range promote.Steps {
			wantPromoted = wantPromoted || step == "committed"
			t.Run(fmt.Sprintf("bump=%d/%s", bump, step), func(t *testing.T) {
				dir := t.TempDir()
				copyTree(t, replica, dir)
				cmd := child(dir, childStepEnv+"="+step, fmt.Sprintf("%s=%d", childBumpEnv, bump))
				if err := cmd.Run(); cmd.ProcessState.ExitCode() != 3 {
					t.Fatalf("the child ended with %v", err)
				}
				if got := want.check(t, dir); got != wantPromoted {
					t.Fatalf("promoted: %v, want %v", got, wantPromoted)
				}
				if wantPromoted {
					return
				}
				follow(t, source, dir)
				cfg := config(dir)
				cfg.BumpRevision = bump
				mustPromote(t, cfg)
				if !want.check(t, dir) {
					t.Fatal("promoted, and yet not")
				}
			})
		}
	}
}

// A record that was being written when the process was killed goes at the next start;
// copies that somebody made stay.
func TestUnwrittenRecordGoes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"node.json", "promotion.json.bak", "default.db.1"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept := tree(t, dir)
	for _, name := range []string{".660560876", ".1"} {
		if err := os.WriteFile(filepath.Join(dir, promote.RecordFile+name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if promoted, _, err := promote.Recover(dir, database, nil); promoted || err != nil {
		t.Fatal(promoted, err)
	}
	if got := tree(t, dir); got != kept {
		t.Errorf("the directory has\n%swant\n%s", got, kept)
	}
}

// Killed with -9 at 50 random moments.
func TestKilled(t *testing.T) {
	t.Parallel()
	kills := 50
	if testing.Short() {
		kills = 15
	}
	_, replica, want := replicaOf(t, 3000)
	rnd := seeded(t)

	var mirrors, promoted int
	for round := 0; mirrors+promoted < kills; round++ {
		if round == 10*kills {
			t.Fatalf("too little happened: %d of %d were killed", mirrors+promoted, round)
		}
		dir := filepath.Join(t.TempDir(), "data")
		copyTree(t, replica, dir)
		want.bump = int64(round%2) * 1000
		// So long after that line; the longest step takes about that long.
		line, after := rnd.IntN(len(promote.Steps)), time.Duration(rnd.Int64N(int64(20*time.Millisecond)))
		if !killAt(t, dir, want.bump, line, after) {
			continue // it was done before
		}
		if want.check(t, dir) {
			promoted++
		} else {
			mirrors++
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills left %d mirrors and %d promoted nodes", kills, mirrors, promoted)
	if mirrors < kills/10 || promoted < kills/10 {
		t.Errorf("%d kills left %d mirrors and %d promoted nodes: too few of one", kills, mirrors, promoted)
	}
}

// killAt kills a child so long after it has printed that line. It reports false if
// the child was done before.
func killAt(t *testing.T, dir string, bump int64, line int, after time.Duration) bool {
	t.Helper()
	cmd := child(dir, fmt.Sprintf("%s=%d", childBumpEnv, bump))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var timer *time.Timer
	for n := 0; lines.Scan(); n++ {
		if strings.HasPrefix(lines.Text(), "error") {
			t.Errorf("the child said %q", lines.Text())
		}
		if n == line {
			timer = time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	err = cmd.Wait()
	if timer != nil {
		timer.Stop()
	}
	return err != nil
}

// seeded returns the choices of a run, logs their seed, and takes it from
// HELIO_TEST_SEED.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("HELIO_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
