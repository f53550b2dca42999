package etcdtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOnlyWhatIsPinnedIsBuilt(t *testing.T) {
	for _, of := range [][2]string{{Newest, "zetcd"}, {"2.3", "etcd"}} {
		if path, err := build(t.Context(), of[0], of[1]); err == nil {
			t.Errorf("%s of etcd %s was built as %s", of[1], of[0], path)
		}
	}
	for _, v := range Versions() {
		of := releases[v]
		pins, err := os.ReadFile(filepath.Join(of.module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		for _, pkg := range packages {
			if !strings.HasPrefix(of.release, v+".") || !strings.Contains(string(pins), pkg+" v"+of.release+" ") {
				t.Errorf("%s/go.mod does not pin %s v%s", of.module, pkg, of.release)
			}
		}
	}
}
