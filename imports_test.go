package heliograph_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/heliograph/heliograph"

// mayImport lists, for each package, which of ours it may import. Everything
// outside internal may import the root; internal packages may be imported where
// they are named here, and by any test.
var mayImport = map[string][]string{
	"":               {},
	"wire":           {""},
	"store":          {"", "internal/zaplog"},
	"upstream/etcd":  {"", "internal/zaplog"},
	"upstream/link":  {"", "wire"},
	"source/session": {""},
	"source":         {"", "wire", "source/session"},
	"readapi":        {"", "readapi/reads", "internal/zaplog"},
	"readapi/reads":  {},
	"certs":          {""},
	"promote":        {"", "internal/zaplog"},
	"node": {"", "wire", "store", "upstream/etcd", "upstream/link", "source", "source/session",
		"readapi", "certs", "promote"},
	"cmd/helio":       {"", "wire", "node", "certs", "promote", "internal/zaplog"},
	"internal/zaplog": {},
}

// exact is where a package that only one other may know is imported.
var exact = map[string][]string{
	"go.etcd.io/bbolt":           {"store", "promote"},
	"github.com/quic-go/quic-go": {"source", "upstream/link"},
}

func TestImportRules(t *testing.T) {
	seen := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		if pkg == "." {
			pkg = ""
		}
		if strings.HasPrefix(pkg, "internal/") && mayImport[pkg] == nil || pkg == "bench" || pkg == "e2e" {
			return nil // test helpers and benchmarks stand outside of the rules
		}
		seen[pkg] = true
		checkImports(t, path, pkg)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range mayImport {
		if !seen[pkg] {
			t.Errorf("package %q has rules but no files", pkg)
		}
	}
}

func checkImports(t *testing.T, path, pkg string) {
	t.Helper()
	allowed, known := mayImport[pkg]
	if !known {
		t.Errorf("%s: package %q has no import rule: give it one", path, pkg)
		return
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range f.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if ours, ok := strings.CutPrefix(name, module); ok {
			if !slices.Contains(allowed, strings.TrimPrefix(ours, "/")) {
				t.Errorf("%s imports %s, which package %q may not", path, name, pkg)
			}
		}
		if where, ok := exact[name]; ok && !slices.Contains(where, pkg) {
			t.Errorf("%s imports %s, which only %v may know", path, name, where)
		}
	}
}

// Every direct dependency is named, with its reason, in docs/DEPENDENCIES.md, and
// nothing else is.
func TestDependenciesAreNamed(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/DEPENDENCIES.md")
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, m := range regexp.MustCompile("`([a-z0-9.]+\\.[a-z]+/[^`]+)`").FindAllStringSubmatch(string(doc), -1) {
		named[m[1]] = true
	}
	for line := range strings.Lines(string(mod)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.HasPrefix(line, "\t") || strings.Contains(line, "// indirect") {
			continue
		}
		if !named[fields[0]] {
			t.Errorf("%s is not named in docs/DEPENDENCIES.md", fields[0])
		}
		delete(named, fields[0])
	}
	for name := range named {
		t.Errorf("docs/DEPENDENCIES.md names %s, which is no direct dependency", name)
	}
}
