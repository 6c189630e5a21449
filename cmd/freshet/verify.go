package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/internal/verify"
)

// verifyOptions are the flags of `verify`.
type verifyOptions struct {
	verify.Options

	stack  bool
	list   bool
	report string
}

func newVerify() *cobra.Command {
	o := verifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Try to break the promise: replicas as processes, load, faults, and a judge",
		Long: `Start a Redis Cluster, Postgres and NATS, and replicas as processes; read and write through
them and past them; break one thing after the other; and judge every answer by the order of
commits in Postgres:

  I1  no FRESH answer is older than its budget (0, 50 ms and 1 s are mixed)
  I2  a session that carries its token from replica to replica never goes back
  I3  FRESH answers of one replica for one key never go back
  I4  nothing is answered that was not committed
  I5  after each fault every replica is asked for everything: no difference to Postgres

It prints a line for each fault and in the end a table, and exits with 3 when a promise was
broken. Ctrl-C ends and removes everything.

Exit codes: 0 promises kept; 1 it could not run; 2 wrong flags; 3 a promise was broken;
130 and 143 ended by SIGINT and SIGTERM.`,
		Example: `  freshet verify --stack
  freshet verify --stack --duration 10m --pairs 5 --report guarantee.md
  freshet verify --stack --faults redis-outage,postgres-outage --duration 1m
  freshet verify --list`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.list {
				return listFaults(cmd.OutOrStdout())
			}
			if err := o.complete(); err != nil {
				return usage(err)
			}
			return runVerify(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.stack, "stack", false, "on servers of its own; required, since faults are not for other servers")
	f.DurationVar(&o.Duration, "duration", 5*time.Minute, "shared by all faults; longer when some need it")
	f.StringSliceVar(&o.Faults, "faults", nil, "only these, in this order (default: all, see --list)")
	f.BoolVar(&o.list, "list", false, "list the faults and do nothing")
	f.IntVar(&o.Pairs, "pairs", 0, "random pairs of faults at once, after the single ones")
	f.Uint64Var(&o.Seed, "seed", 1, "of the random choices")
	f.IntVar(&o.Replicas, "replicas", 3, "replicas, 1 to 16")
	f.Float64Var(&o.Rate, "rate", 6000, "reads per second of each replica, at most")
	f.Float64Var(&o.Writes, "writes", 80, "writes per second through each replica, at most")
	f.StringVar(&o.report, "report", "", "file for the report: *.json, or Markdown")
	cmd.AddCommand(&cobra.Command{
		Use:    "replica",
		Short:  "A replica under test; `freshet verify` starts it",
		Hidden: true,
		Args:   noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return verify.RunReplica(cmd.Context(), verify.Freshet, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	})
	return cmd
}

func (o *verifyOptions) complete() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	o.Program = []string{program, "verify", "replica"}
	var problems []error
	if !o.stack {
		problems = append(problems, errors.New("--stack is missing: faults are for servers that `verify` starts itself"))
	}
	if o.report != "" {
		if f, err := os.Stat(filepath.Dir(o.report)); err != nil || !f.IsDir() {
			problems = append(problems, fmt.Errorf("--report: there is no folder %s to write it to", filepath.Dir(o.report)))
		}
	}
	if err := o.Validate(); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			field, problem, _ := strings.Cut(strings.TrimPrefix(line, "verify: Options."), ": ")
			problems = append(problems, fmt.Errorf("--%s: %s", flagOf(field), problem))
		}
	}
	return errors.Join(problems...)
}

// flagOf is the flag of a field of the options: "MaxStale" is --max-stale, "ID" --id.
func flagOf(field string) string {
	var b strings.Builder
	runes := []rune(field)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) && unicode.IsLower(runes[i-1]) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func listFaults(to io.Writer) error {
	for _, f := range verify.Faults() {
		if _, err := fmt.Fprintf(to, "%-32s %s\n", f.Name, f.About); err != nil {
			return err
		}
	}
	return nil
}

func runVerify(ctx context.Context, o verifyOptions, stdout io.Writer) error {
	o.Progress = stdout
	report, err := verify.Run(ctx, o.Options)
	if report == nil {
		return cause(ctx, err)
	}
	// What was seen so far counts, too.
	fmt.Fprintln(stdout)
	if werr := errors.Join(report.WriteMarkdown(stdout), o.write(report)); werr != nil {
		return errors.Join(err, werr)
	}
	if n := report.Broken(); n > 0 {
		return &exitError{exitVerdict, errors.Join(fmt.Errorf("%d promises were broken in %d FRESH answers", n, report.Fresh()), err)}
	}
	return cause(ctx, err)
}

// cause is the signal that ended ctx, if one did, instead of what came of it.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (o verifyOptions) write(r *verify.Report) error {
	if o.report == "" {
		return nil
	}
	f, err := os.Create(o.report)
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	if strings.HasSuffix(o.report, ".json") {
		err = r.WriteJSON(f)
	} else {
		err = r.WriteMarkdown(f)
	}
	return errors.Join(err, f.Close())
}
