package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// newGroup is a command that has others.
func newGroup(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unknown command %q of %s; see `%s --help`", args[0], cmd.CommandPath(), cmd.CommandPath()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}

// oneName asks for a NAME.
func oneName(cmd *cobra.Command, args []string) error { return arguments(cmd, args, "NAME") }

// arguments asks for these arguments, none of them empty.
func arguments(cmd *cobra.Command, args []string, names ...string) error {
	if len(args) != len(names) {
		wanted := cmp.Or(strings.Join(names, " "), "no argument")
		return usage(fmt.Errorf("%s takes %s, got %d arguments; see `%s --help`", cmd.CommandPath(), wanted, len(args), cmd.CommandPath()))
	}
	for i, arg := range args {
		if arg == "" {
			return usage(fmt.Errorf("%s: %s is empty", cmd.CommandPath(), names[i]))
		}
	}
	return nil
}

// confirmed gives the command the flag --yes, and has it ask, where it runs on a terminal, whether to do what the
// function says; "" = there is no need to ask. Elsewhere it wants the flag. It is asked before the time of the work
// begins.
func confirmed(cmd *cobra.Command, what func(args []string) (string, error)) {
	var yes bool
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without asking; needed where standard input is no terminal")
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		text, err := what(args)
		if err != nil || yes || text == "" {
			return err
		}
		in, ok := cmd.InOrStdin().(*os.File)
		if !ok || !isTerminal(in) {
			return usage(fmt.Errorf("--yes: missing: %s; want it where standard input is no terminal", text))
		}
		return ask(cmd.Context(), in, cmd.ErrOrStderr(), text)
	}
}

// ask returns nil if the answer is yes. Its goroutine waits for a line and ends with the process, if none comes.
func ask(ctx context.Context, in io.Reader, out io.Writer, what string) error {
	fmt.Fprintf(out, "%s. Go on? [y/N] ", what)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // without an answer it is no
		answer <- line
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case line := <-answer:
		if a := strings.ToLower(strings.TrimSpace(line)); a == "y" || a == "yes" {
			return nil
		}
		return errors.New("nothing was done")
	}
}
