package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/heliograph/heliograph/wire"
)

func newVersionCommand(std stdio) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(std.out, versionText())
			return err
		},
	}
}

func versionText() string {
	return fmt.Sprintf("helio %s\nprotocol %s\netcd %s\n%s %s/%s\n",
		buildVersion(""), wire.ALPN, buildVersion("go.etcd.io/etcd/server/v3"),
		runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// buildVersion returns the version of a module that is built in; "" is helio.
func buildVersion(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if module == "" {
		return info.Main.Version
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			return dep.Version
		}
	}
	return "unknown"
}
