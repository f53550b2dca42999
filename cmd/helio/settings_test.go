package main

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const sample = "../../docs/helio.example.yaml"

func nodeCommand(t *testing.T, name string) *cobra.Command {
	t.Helper()
	root := newRootCommand(stdio{in: strings.NewReader(""), out: io.Discard, err: io.Discard})
	cmd, _, err := root.Find([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestSampleConfigIsASource(t *testing.T) {
	cmd := nodeCommand(t, "source")
	if err := cmd.Flags().Set("config", sample); err != nil {
		t.Fatal(err)
	}
	if err := applySettings(cmd.Flags()); err != nil {
		t.Fatal(err)
	}
	for flag, want := range map[string]string{
		"cluster": "prod-us",
		"listen":  "0.0.0.0:7400",
		"etcd":    "[https://10.0.0.1:2379,https://10.0.0.2:2379,https://10.0.0.3:2379]",
		"mode":    "async",
	} {
		if got := cmd.Flags().Lookup(flag).Value.String(); got != want {
			t.Errorf("%s: got %q, want %q", flag, got, want)
		}
	}
}

// Every setting stands in the sample, in use or commented out, and with a value
// that its flag takes.
func TestSampleConfigNamesEverySetting(t *testing.T) {
	b, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	all := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(all, regexp.MustCompile(`(?m)^#([a-z-]+:)`).ReplaceAll(b, []byte("$1")), 0o600); err != nil {
		t.Fatal(err)
	}
	values, err := readConfig(all)
	if err != nil {
		t.Fatal(err)
	}
	flags := make(map[string]bool)
	for _, name := range []string{"source", "mirror"} {
		cmd := nodeCommand(t, name)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "config" || f.Name == "help" {
				return
			}
			flags[f.Name] = true
			if v, ok := values[f.Name]; ok {
				if err := cmd.Flags().Set(f.Name, v); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got, want := slices.Sorted(maps.Keys(values)), slices.Sorted(maps.Keys(flags))
	if !slices.Equal(got, want) {
		t.Errorf("the sample has %v\nthe flags are  %v", got, want)
	}
}

func TestConfigFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(path, make([]byte, maxConfigBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}
