// Bench measures the numbers that the library promises, on real servers that it starts itself, and
// prints them as a table: each is a ratio to the bare parts, or a count, beside its target.
//
//	bench [-only NAMES] [-for DURATION] [-strict] [-json FILE]
//
// What is compared runs interleaved, in short slices of one and the other, and the table has the
// median of the slices' ratios: so it is the same on a fast machine and a slow one, and nearly the
// same on a busy one. Single times in it are not.
//
// Exit codes: 0 measured, whatever came of it; 1 it could not measure; 2 wrong flags; 3 a target was
// missed and -strict was given; 130 and 143 ended by SIGINT and SIGTERM.
//
// The same ways of reading are ordinary benchmarks of this package, for profiles and benchstat.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
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
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// The exit codes that are not signals.
const (
	exitFailed = 1
	exitUsage  = 2
	exitMissed = 3
)

// signalError says that a signal ended the work.
type signalError struct{ number syscall.Signal }

func (e signalError) Error() string { return "ended by a signal: " + e.number.String() }

// options are the flags.
type options struct {
	only   []string      // beginnings of names; one that is empty means all
	length time.Duration // of each comparison
	strict bool
	json   string // path; empty = none
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var only string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&only, "only", "", "measure the numbers whose names begin with one of these `names`, separated by commas")
	flags.DurationVar(&o.length, "for", 3*time.Second, "how long to compare what is compared, each time")
	flags.BoolVar(&o.strict, "strict", false, "exit with 3 when a target is missed")
	flags.StringVar(&o.json, "json", "", "also write the numbers to this `file`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	var problems []error
	if flags.NArg() > 0 {
		problems = append(problems, fmt.Errorf("%q: want flags only", flags.Arg(0)))
	}
	if o.length < 100*time.Millisecond || o.length > time.Hour {
		problems = append(problems, fmt.Errorf("-for %v: want 100ms to 1h", o.length))
	}
	o.only = strings.Split(only, ",")
	for _, beginning := range o.only {
		if !slices.ContainsFunc(names(), func(name string) bool { return strings.HasPrefix(name, beginning) }) {
			problems = append(problems, fmt.Errorf("-only %s: there is no such number; there are %s", beginning, strings.Join(names(), ", ")))
		}
	}
	err := errors.Join(problems...)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return o, err
}

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return exitUsage
	}
	report, err := measure(ctx, o, stderr)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(stderr, "bench: %s\n", line)
		}
		if signalled, ok := errors.AsType[signalError](context.Cause(ctx)); ok {
			return 128 + int(signalled.number)
		}
		return exitFailed
	}
	report.print(stdout)
	if o.json != "" {
		if err := report.save(o.json); err != nil {
			fmt.Fprintf(stderr, "bench: -json: %v\n", err)
			return exitFailed
		}
	}
	if o.strict && report.missed() > 0 {
		return exitMissed
	}
	return 0
}

// measure starts the servers, measures the numbers asked for, and ends the servers.
func measure(ctx context.Context, o options, progress io.Writer) (r *report, err error) {
	fmt.Fprintln(progress, "starting a Redis Cluster, Postgres and NATS")
	stack, err := devstack.Start(ctx, devstack.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()

	r = &report{Began: time.Now(), Machine: describe(ctx, stack)}
	l := &lab{stack: stack, length: o.length}
	for _, e := range experiments() {
		if !slices.ContainsFunc(o.only, func(beginning string) bool { return strings.HasPrefix(e.name, beginning) }) {
			continue
		}
		fmt.Fprintf(progress, "measuring %s: %s\n", e.name, e.title)
		n, err := e.measure(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		n.Name, n.Title, n.Target, n.Unit = e.name, e.title, e.target, e.unit
		n.Met = n.Value <= n.Target
		n.Command = fmt.Sprintf("make bench ARGS='-only %s'", e.name)
		r.Numbers = append(r.Numbers, n)
	}
	r.Seconds = time.Since(r.Began).Seconds()
	return r, nil
}
