package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// addConfigFlag gives a command --config, the environment, and a file, for all of
// its flags: a flag wins over the environment, that over the file.
func addConfigFlag(cmd *cobra.Command) {
	cmd.Flags().String("config", "", "YAML file with the same names as the flags")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := applySettings(cmd.Flags()); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// applySettings sets every flag that the command line left alone from
// HELIO_<FLAG> or the configuration file.
func applySettings(flags *pflag.FlagSet) error {
	var errs []error
	fromEnv := func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" {
			return
		}
		if v, ok := os.LookupEnv(envName(f.Name)); ok {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment %s: %w", envName(f.Name), err))
			}
		}
	}
	flags.VisitAll(fromEnv)
	path := flags.Lookup("config").Value.String()
	if path == "" {
		return errors.Join(errs...)
	}
	file, err := readConfig(path)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(file)) {
		value := file[name]
		f := flags.Lookup(name)
		if f == nil || name == "config" || name == "help" {
			errs = append(errs, fmt.Errorf("%s: %q is not a setting of this command; its settings are %s", path, name, settingNames(flags)))
			continue
		}
		if f.Changed {
			continue
		}
		if err := flags.Set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", path, name, err))
		}
	}
	return errors.Join(errs...)
}

func envName(flag string) string {
	return "HELIO_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func settingNames(flags *pflag.FlagSet) string {
	var names []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "help" {
			names = append(names, f.Name)
		}
	})
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// readConfig reads a YAML map of names to scalars or to lists of scalars, which
// are joined by commas as on the command line.
func readConfig(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("configuration file %s is larger than %d bytes", path, maxConfigBytes)
	}
	var nodes map[string]yaml.Node
	if err := yaml.Unmarshal(b, &nodes); err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	values := make(map[string]string, len(nodes))
	for name, node := range nodes {
		value, err := settingValue(node)
		if err != nil {
			return nil, fmt.Errorf("configuration file %s: line %d: %s: %w", path, node.Line, name, err)
		}
		values[name] = value
	}
	return values, nil
}

func settingValue(node yaml.Node) (string, error) {
	switch node.Kind {
	case yaml.ScalarNode:
		if node.Tag == "!!null" {
			return "", nil
		}
		return node.Value, nil
	case yaml.SequenceNode:
		var list []string
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("want a list of plain values")
			}
			list = append(list, item.Value)
		}
		return strings.Join(list, ","), nil
	}
	return "", errors.New("want a plain value or a list of them")
}
