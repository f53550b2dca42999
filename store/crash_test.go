package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/store"
)

const childDirEnv = "HELIOGRAPH_STORE_TEST_CHILD"

// generated is revision rev of a history that anybody can compute: a few new
// keys in each.
func generated(rev int64) heliograph.Batch {
	b := heliograph.Batch{Rev: rev}
	for sub := range rev%5 + 1 {
		v, err := proto.Marshal(&mvccpb.KeyValue{
			Key: fmt.Appendf(nil, "key-%d-%d", rev, sub), Value: make([]byte, 1+rev%300),
			CreateRevision: rev, ModRevision: rev, Version: 1, Lease: rev % 3,
		})
		if err != nil {
			panic(err)
		}
		b.Records = append(b.Records, heliograph.Record{Key: revKey(rev, sub, false), Value: v})
	}
	return b
}

// runChild applies until it is killed and prints each durable revision.
func runChild(dir string) {
	st, err := store.Open(store.Config{Dir: dir, CommitInterval: 3 * time.Millisecond})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	go func() {
		for last := int64(0); ; {
			changed := st.Changed()
			if d := st.Durable(); d > last {
				last = d
				fmt.Println(d)
			}
			<-changed
		}
	}()
	for {
		rev := st.Applied() + 1
		if err := st.Apply(generated(rev)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		if rev%997 == 0 {
			st.Compact(rev - 500)
		}
	}
}

// A process that is killed while it applies and compacts leaves whole revisions,
// and no fewer than it said were durable.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := openStore(t, store.Config{Dir: dir})
	mustReceive(t, st, src.snapshot())
	closeStore(t, st)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDirEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var durable int64
		lines := bufio.NewScanner(out)
		for n := 1 + rnd.IntN(30); lines.Scan(); {
			if durable, err = strconv.ParseInt(lines.Text(), 10, 64); err != nil {
				t.Fatalf("child said %q", lines.Text())
			}
			if n--; n == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("child ended by itself")
		}

		st := openStore(t, store.Config{Dir: dir})
		applied := st.Applied()
		if applied < durable {
			t.Fatalf("round %d: %d was durable, and %d is left", round, durable, applied)
		}
		from := st.Floor() + 1
		got := history(t, st, from, 1<<20)
		if want := applied - from + 1; int64(len(got)) != want {
			t.Fatalf("round %d: history holds %d revisions, want %d", round, len(got), want)
		}
		for _, b := range got {
			if !equalBatch(b, generated(b.Rev)) {
				t.Fatalf("round %d: revision %d is not what was applied", round, b.Rev)
			}
		}
		if round == 19 && (applied < 2000 || st.Compacted() == 0) {
			t.Fatalf("too little happened: applied %d, compacted %d", applied, st.Compacted())
		}
		closeStore(t, st)
	}
}

// A transfer that a killed process left behind is removed by Open.
func TestLeftoversAreRemoved(t *testing.T) {
	dir := t.TempDir()
	src := newSource(t)
	st := openStore(t, store.Config{Dir: dir})
	mustReceive(t, st, src.snapshot())
	closeStore(t, st)
	for _, name := range []string{"default.partial", "spool/default@3.db", "spool/other@1.db"} {
		if err := os.WriteFile(dir+"/"+name, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newStore(t, store.Config{Dir: dir})
	for name, want := range map[string]bool{"default.partial": false, "spool/default@3.db": false, "spool/other@1.db": true} {
		if _, err := os.Stat(dir + "/" + name); errors.Is(err, os.ErrNotExist) == want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
