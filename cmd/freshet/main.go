// Freshet is the project's one program: the whole example on real servers (`freshet up`), one
// replica of it (`freshet serve`), and the tools around them. `freshet help` lists the commands.
//
// Exit codes, of every command:
//
//	0    done; for `up` without load: also after Ctrl-C or SIGTERM
//	1    it failed; standard error says at what, in one line for each problem
//	2    wrong command, flag, argument or FRESHET_* variable
//	3    `up`: a promise was broken: a FRESH answer older than its budget, an acknowledged write lost,
//	     requests that failed without a fault having been injected, or caches that stayed cold for 5 s after a
//	     restart
//	130  ended by Ctrl-C (SIGINT) before its work was done
//	143  ended by SIGTERM before its work was done
//
// The first signal ends a command in good order; a second one ends it at once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		// From now on the default action of a second signal applies: it ends the process.
		s := <-signals
		signal.Reset()
		if number, ok := s.(syscall.Signal); ok {
			cancel(signalError{number})
		}
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: it returns the exit code. A context that ends by a [signalError] stands for
// that signal.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot() //nolint:contextcheck // the commands get ctx by ExecuteContext
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(stderr, "freshet: %s\n", line)
	}
	if signalled, ok := errors.AsType[signalError](err); ok {
		return 128 + int(signalled.number)
	}
	if coded, ok := errors.AsType[*exitError](err); ok {
		return coded.code
	}
	return exitFailed
}

// The exit codes that are not signals.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitVerdict = 3
)

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usage marks an error of the caller's; nil stays nil.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{exitUsage, err}
}

// signalError says that a signal ended the work.
type signalError struct{ number syscall.Signal }

func (e signalError) Error() string {
	if e.number == syscall.SIGINT {
		return "interrupted"
	}
	return "ended by a signal: " + e.number.String()
}
