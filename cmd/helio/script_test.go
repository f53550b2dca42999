package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/internal/proctest"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"helio": helioProcess})
}

// leakChecked fails a run that leaves goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// helioProcess is helio, as a process of its own.
func helioProcess() {
	// A test binary that is killed takes its processes along.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
	os.Exit(execute(os.Args[1:]))
}

// addresses are the variables of a script that hold a free host:port each.
var addresses = []string{
	"US", "US_CLIENTS", "US_ADMIN", // of a source node
	"EU", "EU_CLIENTS", "EU_ADMIN", "EU_SECURE", "EU_PEER", // of a mirror
	"AP_CLIENTS", "AP_ADMIN", // of a mirror of the mirror
	"NOBODY", // nothing ever listens here
}

// TestScripts runs the tutorials in testdata/script. Beside testscript's own
// commands they have
//
//	etcd [flag...]           starts an etcd at $ETCD
//	auth PASSWORD            gives it the user root and turns authentication on
//	await REGEXP COMMAND...  runs a command until it prints that, for 30 s at most
//	exits CODE COMMAND...    runs a command, which must end with this code
//	signal NAME COMMAND      sends INT or TERM to a command in the background
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	ports := proctest.FreePorts(t, len(scripts)*len(addresses)) // all at once, so that no two scripts get the same
	next := make(chan int, len(ports))
	for _, port := range ports {
		next <- port
	}
	tools := filepath.Dir(etcdtest.Binary(t, "etcdctl"))
	testscript.Run(t, testscript.Params{
		Files: scripts, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			for _, name := range addresses {
				env.Setenv(name, "127.0.0.1:"+strconv.Itoa(<-next))
			}
			env.Setenv("PATH", env.Getenv("PATH")+string(os.PathListSeparator)+tools)
			env.Values[clusterKey{}] = &cluster{tb: env.T().(testing.TB)}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"etcd": scriptEtcd, "auth": scriptAuth, "await": scriptAwait, "exits": scriptExits, "signal": scriptSignal,
		},
	})
}

type clusterKey struct{}

// cluster is the etcd of one script.
type cluster struct {
	tb   testing.TB
	etcd *etcdtest.Cluster
}

func clusterOf(ts *testscript.TestScript) *cluster { return ts.Value(clusterKey{}).(*cluster) }

func scriptEtcd(ts *testscript.TestScript, neg bool, args []string) {
	c := clusterOf(ts)
	if neg || c.etcd != nil {
		ts.Fatalf("usage: etcd [flag...], once")
	}
	c.etcd = etcdtest.Start(c.tb, etcdtest.Options{Args: args})
	ts.Setenv("ETCD", c.etcd.Endpoints()[0])
}

func scriptAuth(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: auth PASSWORD")
	}
	c := clusterOf(ts)
	c.etcd.EnableAuth(c.tb, args[0])
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	// Longer than the longest pause between two tries, which is 30 s.
	const limit, pace = time.Minute, 100 * time.Millisecond
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP COMMAND...")
	}
	want, err := regexp.Compile(`(?m)` + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(limit); ; time.Sleep(pace) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q did not print %q within %s (%v)", args[1:], args[0], limit, err)
		}
	}
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM}
	if neg || len(args) != 2 || signals[args[0]] == nil {
		ts.Fatalf("usage: signal INT|TERM COMMAND")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if filepath.Base(cmd.Args[0]) == "helio" && len(cmd.Args) > 1 && cmd.Args[1] == args[1] {
			ts.Check(cmd.Process.Signal(signals[args[0]]))
			return
		}
	}
	ts.Fatalf("no helio %s runs in the background", args[1])
}
