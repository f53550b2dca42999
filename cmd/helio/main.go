// Command helio mirrors etcd clusters: it runs source and mirror nodes, shows
// their status, makes their certificates, and demonstrates itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitMisused = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the second one kills, as it does by default.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(code)
}

// stdio is what a command reads and writes: data to out, talk to err.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a mistake in how helio was called, as opposed to a failure of
// what it was asked to do.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, std stdio) int {
	root := newRootCommand(std)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var misuse usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &misuse):
		fmt.Fprintf(std.err, "helio: %v\n", err)
		return exitMisused
	}
	fmt.Fprintf(std.err, "helio: %v\n", err)
	return exitFailed
}

func newRootCommand(std stdio) *cobra.Command {
	root := &cobra.Command{
		Use:   "helio",
		Short: "Exact, read-only mirrors of etcd clusters over QUIC",
		Long: `helio keeps exact copies of an etcd cluster elsewhere: same revisions, same bytes.

Beside the etcd runs 'helio source'; elsewhere 'helio mirror' follows it, and any
etcd client reads and watches the mirror. 'helio demo' shows it all in one process.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see '%s --help')", err, cmd.CommandPath())}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newSourceCommand(std),
		newMirrorCommand(std),
		newStatusCommand(std),
		newCertsCommand(std),
		newDemoCommand(std),
		newVersionCommand(std),
	)
	return root
}

// noArgs refuses arguments; on the root it is also what an unknown command meets.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return usageError{fmt.Errorf("unknown command %q (see '%s --help')", args[0], cmd.CommandPath())}
	}
	return usageError{fmt.Errorf("%s takes no arguments, but got %q", cmd.CommandPath(), args[0])}
}
