// Rivals puts Freshet, a plain cache-aside and public Go libraries under the same load and the same faults, on real
// servers that it starts itself and with three replicas as processes, and prints what the same judge says of each.
//
//	rivals [-duration D] [-short] [-only SYSTEMS] [-faults FAULTS] [-seed N] [-report FILE]
//
// All are held to the same promise: no answer is older than a second, a session reads what it wrote, no replica goes
// back, and after a fault everything is as in Postgres. Rivals label nothing, so each of their answers counts; of
// Freshet's, those that it labels FRESH. Each fault has the same seed, load and length for all. But for one line, where
// another service writes in SQL, all writes go through the system's own replicas, each followed by the invalidation that
// its documentation asks for.
//
// Exit codes: 0 measured, whatever came of it; 1 it could not measure; 2 wrong flags; 3 Freshet broke its promise.
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
	"github.com/freshet-cache/freshet/internal/verify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
	exitBroken = 3
)

// replicaVerb begins the arguments of a replica's process; the name of its system follows.
const replicaVerb = "replica"

// options are the flags.
type options struct {
	systems  []rival
	faults   []string
	outside  bool          // also the line with writes in SQL
	duration time.Duration // of all
	seed     uint64
	report   string // path; "" = none
}

// faults are those under which a cache of this kind can differ from another, and that happen. The first ones are the
// short run.
func faults() []string {
	return []string{
		"none", "partition-redis-cut", "partition-postgres-delay", "replica-killed",
		"redis-slow", "partition-redis-delay", "redis-primary-killed", "redis-outage", "replica-stopped", "nats-outage",
	}
}

const (
	shortFaults   = 4
	fullDuration  = 10 * time.Minute
	shortDuration = 3 * time.Minute
	// The load: hot rows are written often enough to be met by reads, and two cores can serve it.
	reads, writes = 1500, 80 // per second and replica, at most
	rows, lists   = 400, 20
	// budget is Freshet's default, and what all are judged by.
	budget = time.Second
	// outsideName is the line of the report for writes in SQL.
	outsideName = "written in SQL"
)

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{systems: systems(), faults: faults(), outside: true}
	var only, chosen string
	var short bool
	flags := flag.NewFlagSet("rivals", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&o.duration, "duration", 0, "of all together, about (default 10m, 3m with -short)")
	flags.BoolVar(&short, "short", false, "fewer faults")
	flags.StringVar(&only, "only", "", "these `systems`, separated by commas")
	flags.StringVar(&chosen, "faults", "", "these `faults`, separated by commas; "+outsideFlag+" = writes in SQL")
	flags.Uint64Var(&o.seed, "seed", 1, "of the random choices")
	flags.StringVar(&o.report, "report", "", "also write the tables to this `file`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	var problems []error
	if flags.NArg() > 0 {
		problems = append(problems, fmt.Errorf("%q: want flags only", flags.Arg(0)))
	}
	if o.duration == 0 {
		o.duration = fullDuration
		if short {
			o.duration = shortDuration
		}
	}
	if o.duration < time.Second || o.duration > 24*time.Hour {
		problems = append(problems, fmt.Errorf("-duration %v: want 1s to 24h", o.duration))
	}
	if short {
		o.faults = o.faults[:shortFaults]
	}
	if chosen != "" {
		o.faults = strings.Split(chosen, ",")
		n := len(o.faults)
		o.faults = slices.DeleteFunc(o.faults, func(f string) bool { return f == outsideFlag })
		o.outside = len(o.faults) < n
	}
	for _, name := range o.faults {
		if !slices.ContainsFunc(verify.Faults(), func(f verify.Fault) bool { return f.Name == name }) {
			problems = append(problems, fmt.Errorf("-faults %s: there is no such fault; those of a full run are %s,%s", name, strings.Join(faults(), ","), outsideFlag))
		}
	}
	if only != "" {
		o.systems = nil
		for name := range strings.SplitSeq(only, ",") {
			r, err := find(name)
			problems = append(problems, err)
			o.systems = append(o.systems, r)
		}
	}
	err := errors.Join(problems...)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return o, err
}

// outsideFlag is what -faults calls the writes in SQL.
const outsideFlag = "sql"

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "rivals: %v\n", err)
		return exitFailed
	}
	if len(args) == 2 && args[0] == replicaVerb {
		r, err := find(args[1])
		if err == nil {
			err = verify.RunReplica(ctx, r.open, os.Stdin, stdout)
		}
		if err != nil {
			return fail(err)
		}
		return 0
	}
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return exitUsage
	}
	r, err := compare(ctx, o, stderr)
	text := r.markdown()
	fmt.Fprint(stdout, text)
	if o.report != "" && err == nil {
		err = os.WriteFile(o.report, []byte(text), 0o644) //nolint:gosec // a report is for everybody
	}
	switch {
	case err != nil:
		return fail(err)
	case r.promised() > 0:
		return exitBroken
	}
	return 0
}

// compare puts every system under every fault. A rival that cannot go on has that in its result; Freshet must.
func compare(ctx context.Context, o options, progress io.Writer) (_ *report, err error) {
	r := &report{seed: o.seed, began: time.Now()}
	program, err := os.Executable()
	if err != nil {
		return r, err
	}
	t := trial{options: o, program: program}
	defer func() { err = errors.Join(err, t.close()) }()
	for _, system := range o.systems {
		one := result{rival: system}
		for _, line := range o.lines() {
			fmt.Fprintf(progress, "%-15s %-26s ", system.name, line)
			p, err := t.run(ctx, system, line)
			if ctx.Err() != nil {
				fmt.Fprintln(progress, "interrupted")
				return r, context.Cause(ctx)
			}
			if err != nil {
				fmt.Fprintf(progress, "%v\n", err)
				if system.name == freshet {
					return r, fmt.Errorf("%s: %w", line, err)
				}
				one.failures = append(one.failures, fmt.Errorf("%s: %w", line, err))
				continue
			}
			fmt.Fprintf(progress, "%7d reads, %6d broke the promise, longest staleness %s\n", p.Reads+p.Swept, broken(p), seconds(p.Longest))
			if system.name == freshet {
				for _, violation := range p.Kept {
					fmt.Fprintf(progress, "  %s\n", violation)
				}
			}
			one.phases = append(one.phases, *p)
		}
		r.results = append(r.results, one)
	}
	return r, nil
}

// lines of the report, for each system.
func (o options) lines() []string {
	lines := slices.Clone(o.faults)
	if o.outside {
		lines = append(lines, outsideName)
	}
	return lines
}

// trial is what runs have in common: the servers, which are started anew when a run could not leave them whole.
type trial struct {
	options options
	program string
	stack   *devstack.Stack // nil = none
}

func (t *trial) close() error {
	if t.stack == nil {
		return nil
	}
	err := t.stack.Close()
	t.stack = nil
	return err
}

// run puts a system under one fault, with a database and keys that no other run has: what a cache kept wrong counts
// where it went wrong.
func (t *trial) run(ctx context.Context, system rival, line string) (_ *verify.Phase, err error) {
	if t.stack == nil {
		if t.stack, err = devstack.Start(ctx, devstack.Options{}); err != nil {
			return nil, err
		}
	}
	fault := line
	if line == outsideName {
		fault = "none"
	}
	o := t.options
	found, err := verify.Run(ctx, verify.Options{
		Program: []string{t.program, replicaVerb, system.name}, Keys: rows, Groups: lists, Faults: []string{fault},
		Duration: o.duration / time.Duration(len(o.systems)*len(o.lines())), Seed: o.seed, Rate: reads, Writes: writes,
		Alone: line != outsideName, Budget: budget, Stack: t.stack,
	})
	if err == nil && len(found.Phases) != 1 {
		err = fmt.Errorf("it has %d results", len(found.Phases))
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	p := &found.Phases[0]
	p.Fault = line
	return p, nil
}
