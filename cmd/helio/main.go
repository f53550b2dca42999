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
	"slices"
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
	os.Exit(execute(os.Args[1:]))
}

// execute runs a command line of this process, with its signals and files.
func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// After the first signal the second one kills, as it does by default.
	context.AfterFunc(ctx, stop)
	return run(ctx, args, stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
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
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetVersionTemplate("{{.Version}}")
	root.SetHelpCommand(newHelpCommand())
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
		newVerifyCommand(std),
		newResyncCommand(std),
		newPromoteCommand(std),
		newExportCommand(std),
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
		return unknownCommand(cmd, args[0])
	}
	return usageError{fmt.Errorf("%s takes no arguments, but got %q", cmd.CommandPath(), args[0])}
}

// maxTypos is how far from a command's name a word may be to be taken for it.
const maxTypos = 2

// unknownCommand says that parent has no such command, and which was meant.
func unknownCommand(parent *cobra.Command, name string) error {
	parent.SuggestionsMinimumDistance = maxTypos
	hint := ""
	if meant := parent.SuggestionsFor(name); len(meant) > 0 {
		hint = fmt.Sprintf(": did you mean %q?", meant[0])
	}
	return usageError{fmt.Errorf("unknown command %q%s (see '%s --help')", name, hint, parent.CommandPath())}
}

// newHelpCommand replaces cobra's, which does not mind commands that do not
// exist.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Explain a command",
		RunE: func(help *cobra.Command, args []string) error {
			cmd := help.Root()
			for _, name := range args {
				i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == name })
				if i < 0 {
					return unknownCommand(cmd, name)
				}
				cmd = cmd.Commands()[i]
			}
			return cmd.Help()
		},
	}
}
