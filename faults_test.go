package heliograph_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// docs/FAULTS.md has a row for each fault. Every test that it names exists, and every
// test that is named after rows is in each of them.
func TestFaultsAreNamed(t *testing.T) {
	doc, err := os.ReadFile("docs/FAULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	const rows = 30
	named := make(map[int]map[string]bool)
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \|.*\|(.*)\|$`).FindAllStringSubmatch(string(doc), -1) {
		n, err := strconv.Atoi(row[1])
		if err != nil {
			t.Fatal(err)
		}
		if named[n] != nil {
			t.Errorf("row %d is there twice", n)
		}
		named[n] = make(map[string]bool)
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[2], -1) {
			named[n][m[1]] = true
		}
	}
	tests := testsOfTheTree(t)
	for n := 1; n <= rows; n++ {
		if len(named[n]) == 0 {
			t.Errorf("row %d names no test", n)
		}
		for name := range named[n] {
			if !tests[name] {
				t.Errorf("row %d names %s, which does not exist", n, name)
			}
		}
	}
	if len(named) != rows {
		t.Errorf("%d rows, want %d", len(named), rows)
	}
	afterRows := regexp.MustCompile(`\.Test(?:Row|Fault)((?:\d\d)(?:And\d\d)*)`)
	for name := range tests {
		m := afterRows.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		for _, number := range strings.Split(m[1], "And") {
			n, err := strconv.Atoi(number)
			if err != nil {
				t.Fatal(err)
			}
			if !named[n][name] {
				t.Errorf("%s is not named in row %d", name, n)
			}
		}
	}
}

// testsOfTheTree returns the tests and fuzz targets of all packages, as folder.Name.
func testsOfTheTree(t *testing.T) map[string]bool {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	tests := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range declared.FindAllStringSubmatch(string(content), -1) {
			tests[fmt.Sprint(filepath.ToSlash(filepath.Dir(path)), ".", m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}
