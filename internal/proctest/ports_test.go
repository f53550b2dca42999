package proctest

import (
	"path/filepath"
	"testing"
)

// What one process has taken, another does not get, until it is released.
func TestPortTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports")
	var tables [2]*portTable // locks are of an open file: two are as two processes
	for i := range tables {
		var err error
		if tables[i], err = openPortTable(path); err != nil {
			t.Fatal(err)
		}
		defer tables[i].file.Close()
	}
	one, two := tables[0], tables[1]
	if !one.take(10_000) || one.take(10_000) || two.take(10_000) {
		t.Error("taken twice")
	}
	if !two.take(10_001) || one.take(10_001) {
		t.Error("the next one is not free, or was taken twice")
	}
	one.release(10_000)
	if !two.take(10_000) || one.take(10_000) {
		t.Error("released and not free, or taken twice")
	}
}

// The test's end gives its ports back.
func TestFreePorts(t *testing.T) {
	var ports []int
	t.Run("taken", func(t *testing.T) {
		ports = FreePorts(t, 50)
		seen := make(map[int]bool)
		for _, port := range ports {
			if seen[port] {
				t.Errorf("port %d twice", port)
			}
			seen[port] = true
		}
	})
	table, err := sharedPorts()
	if err != nil || len(table.held) != 0 {
		t.Errorf("%d ports are held after the test, %v", len(table.held), err)
	}
}
