// Command testcount reads `go test -json` from its input, prints what failed and
// every skip with its reason, and ends with a line that counts the tests. It
// exits with 1 if a test or a package failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	output := make(map[string][]string) // of tests that have not passed yet
	var passed, failed, skipped int
	bad := false
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Println(in.Text())
			continue
		}
		id := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if e.Test == "" && e.Package != "" || e.Action == "build-output" {
				fmt.Print(e.Output)
			} else {
				output[id] = append(output[id], e.Output)
			}
		case "pass":
			if e.Test != "" {
				passed++
			}
			delete(output, id)
		case "skip":
			if e.Test != "" {
				skipped++
				fmt.Printf("SKIP %s\n%s", id, strings.Join(output[id], ""))
			}
			delete(output, id)
		case "fail":
			bad = true
			if e.Test != "" {
				failed++
				fmt.Printf("FAIL %s\n%s", id, strings.Join(output[id], ""))
			}
			delete(output, id)
		case "build-fail":
			bad = true
		}
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		bad = true
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if bad || passed == 0 {
		os.Exit(1)
	}
}
