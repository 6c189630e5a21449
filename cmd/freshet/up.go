package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/freshet-cache/freshet/internal/trace"
)

// upOptions are the flags of `up`.
type upOptions struct {
	replicas     int
	products     int
	listen       string
	listenChosen bool // the user named the address
	budget       time.Duration
	maxStale     time.Duration
	duration     time.Duration // 0 = until a signal
	logs         string

	replay string
	format string
	rate   float64 // requests per second; 0 without replay = no load
	writes percent
	lists  percent
	seed   uint64
	report string

	kill    fault
	restart order
	at      time.Duration
}

// The bounds of `up`.
const (
	maxReplicas = 16
	maxRate     = 100_000
	maxDuration = 24 * time.Hour
	// defaultLoadTime is --for with load.
	defaultLoadTime = 30 * time.Second
	// defaultReplayRate is --rate with --replay.
	defaultReplayRate = 2000
)

func newUp() *cobra.Command {
	o := upOptions{writes: 0.02, lists: 0.05}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run replicas of the shop on real servers, behind a load balancer",
		Long: `Start a Redis Cluster, Postgres and NATS in a temporary folder, fill a catalogue,
start replicas of the shop as processes and a load balancer in front; print how to try
it; then show once a second what the caches do. Ctrl-C ends and removes everything.

With --replay FILE it also drives the shop with the keys of a trace, and with --rate
alone with synthetic keys (Zipf, 0.99), in open loop: requests are sent when they are
due, however slow the answers are. Of the accesses --writes become updates, half of them
through a replica and half directly in Postgres, and --lists become list pages. Every
answer is compared with the commits that are known. It ends after --for, prints a
summary, and exits with 3 when a FRESH answer was older than its budget, an acknowledged
write was lost, or requests failed without a fault.

--kill injects one fault at --at and restores it 5 s later. Requests that fail while
it lasts, or shortly after, are reported and forgiven; wrong answers never are.

--restart replaces every replica, one after the other from --at on, and then ends the
load: start-first starts the successor before the replica drains, as a Deployment with
maxSurge 1 does, stop-first the other way round. No request that fails is forgiven, and
each successor's hit ratio has to be back at 95 % of what it was within 5 s from when it
is in service; the summary tells of each.

Trace formats: cache2k (32-bit big-endian keys) and lines (one key per line), plain or
compressed with xz.

Exit codes: 0 promises kept, or Ctrl-C without load; 1 it could not run; 2 wrong flags;
3 a promise was broken; 130 and 143 ended by SIGINT and SIGTERM under load.`,
		Example: `  freshet up --replicas 3
  freshet up --replay web07.trace.xz --rate 2000 --for 30s --report report.json
  freshet up --rate 1000 --for 30s --kill redis --at 10s
  freshet up --rate 500 --restart start-first`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.listenChosen = cmd.Flags().Changed("listen")
			if err := o.complete(cmd.Flags().Changed("rate"), cmd.Flags().Changed("for")); err != nil {
				return usage(err)
			}
			return up(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.replicas, "replicas", 3, "replicas of the API, 1 to 16")
	f.IntVar(&o.products, "products", 100_000, "products in the catalogue")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address of the load balancer; when not given and taken, the next free port")
	f.DurationVar(&o.budget, "budget", time.Second, "how old a FRESH answer may be")
	f.DurationVar(&o.maxStale, "max-stale", time.Minute, "how old a STALE answer may be while freshness cannot be proven; 0 = answer none")
	f.DurationVar(&o.duration, "for", 0, "how long to run (default: 30s with load, else until Ctrl-C)")
	f.StringVar(&o.logs, "logs", "", "existing folder for the output of servers and replicas (default: kept only for errors)")
	f.StringVar(&o.replay, "replay", "", "trace of keys to drive the shop with")
	f.StringVar(&o.format, "format", "", "format of the trace: cache2k or lines (default: found out)")
	f.Float64Var(&o.rate, "rate", 0, "requests per second (default: 2000 with --replay); without --replay: synthetic load")
	f.Var(&o.writes, "writes", "share of accesses that update a product, 0% to 50%")
	f.Var(&o.lists, "lists", "share of accesses that read a list page, 0% to 50%")
	f.Uint64Var(&o.seed, "seed", 1, "of the random choices of the load")
	f.StringVar(&o.report, "report", "", "file for the report of the load, as JSON")
	f.Var(&o.kill, "kill", "fault to inject: "+strings.Join(faults(), ", "))
	f.Var(&o.restart, "restart", "restart all replicas under load: "+strings.Join(orders(), ", "))
	f.DurationVar(&o.at, "at", 10*time.Second, "when to inject the fault or begin with the restarts, after the load or the run began")
	return cmd
}

// load reports whether `up` drives the shop.
func (o upOptions) load() bool { return o.replay != "" || o.rate > 0 }

// complete fills in what depends on other flags and reports all problems at once.
func (o *upOptions) complete(rateGiven, durationGiven bool) error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if o.replicas < 1 || o.replicas > maxReplicas {
		wrong("--replicas: %d; want 1 to %d", o.replicas, maxReplicas)
	}
	if o.products < 1 || o.products > maxProducts {
		wrong("--products: %d; want 1 to %d", o.products, maxProducts)
	}
	if !(o.rate >= 0 && o.rate <= maxRate) || rateGiven && o.rate == 0 {
		wrong("--rate: %v; want more than 0, up to %d requests per second", o.rate, maxRate)
	}
	if o.replay != "" && !rateGiven {
		o.rate = defaultReplayRate
	}
	if o.load() && !durationGiven {
		o.duration = defaultLoadTime
		if o.restart != "" { // it ends before, by itself
			o.duration = o.at + time.Duration(o.replicas)*restartTime
		}
	}
	if o.duration < 0 || o.duration > maxDuration || durationGiven && o.duration == 0 {
		wrong("--for: %v; want more than 0, up to %v", o.duration, maxDuration)
	}
	if o.budget <= 250*time.Millisecond || o.budget > time.Minute {
		wrong("--budget: %v; want more than the 250ms between two polls, up to 1m", o.budget)
	}
	if o.maxStale < 0 || o.maxStale > time.Hour {
		wrong("--max-stale: %v; want 0 to 1h", o.maxStale)
	}
	if o.logs != "" {
		if f, err := os.Stat(o.logs); err != nil {
			wrong("--logs: %w", err)
		} else if !f.IsDir() {
			wrong("--logs: %s is not a folder", o.logs)
		}
	}
	if o.replay != "" {
		if f, err := os.Stat(o.replay); err != nil {
			wrong("--replay: %w", err)
		} else if f.IsDir() {
			wrong("--replay: %s is a folder; want a trace file", o.replay)
		}
	}
	if o.format != "" {
		if o.replay == "" {
			wrong("--format: only together with --replay")
		}
		if _, err := trace.ParseFormat(o.format); err != nil {
			wrong("--format: %w", err)
		}
	}
	if o.writes+o.lists > 1 {
		wrong("--writes and --lists: together over 100%%")
	}
	if o.report != "" {
		if !o.load() {
			wrong("--report: only with load; give --replay or --rate too")
		}
		if f, err := os.Stat(filepath.Dir(o.report)); err != nil || !f.IsDir() {
			wrong("--report: there is no folder %s to write it to", filepath.Dir(o.report))
		}
	}
	if (o.kill != "" || o.restart != "") && o.at < 0 {
		wrong("--at: %v; want 0 or more", o.at)
	}
	if o.restart != "" {
		if !o.load() {
			wrong("--restart: only with load, whose requests show what came of it; give --replay or --rate too")
		}
		if o.kill != "" {
			wrong("--restart: not together with --kill, for which failed requests are forgiven")
		}
		if o.restart == stopFirst && o.replicas == 1 {
			wrong("--restart: stop-first leaves nobody to answer when there is one replica; want --replicas 2 or more")
		}
	}
	if o.kill != "" {
		if o.duration > 0 && o.at+faultTime+time.Second > o.duration {
			wrong("--at: %v; the fault lasts %v and must be over before the run, which lasts %v", o.at, faultTime, o.duration)
		}
	}
	return errors.Join(problems...)
}

// up is the command: raise, run, lower.
func up(ctx context.Context, o upOptions, stdout io.Writer) (err error) {
	s, err := raise(ctx, o, stdout)
	if err != nil {
		return err
	}
	b := newBoard(stdout)
	defer func() { //nolint:contextcheck // lower ends everything although, or because, ctx has ended
		fmt.Fprint(stdout, "ending and removing everything ... ")
		began := time.Now()
		if lerr := s.lower(); lerr != nil {
			fmt.Fprintln(stdout, "failed")
			err = errors.Join(err, lerr)
			return
		}
		fmt.Fprintf(stdout, "%.1f s\n", time.Since(began).Seconds())
	}()
	s.greet(stdout)
	return s.run(ctx, b)
}

// run shows the status, injects the fault and drives the load until one of them, or ctx, ends it.
func (s *stand) run(ctx context.Context, b *board) (err error) {
	o := s.options
	var l *load // nil = none
	if o.load() {
		if l, err = newLoad(s); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.close()) }()
	}

	// The load and the fault end before run returns.
	var working sync.WaitGroup
	defer working.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	events, failed := make(chan string, 4+2*o.replicas), make(chan error, 1)
	f := &faultRun{stand: s, load: l, events: events, failed: failed}
	working.Go(func() { f.run(ctx) })
	rolling := &restartRun{stand: s, load: l, events: events, failed: failed, over: make(chan struct{})}
	working.Go(func() { rolling.run(ctx) })
	var loaded <-chan outcome // never, without load
	var over <-chan time.Time // never, with load, which ends by itself, or without --for
	if l != nil {
		loaded = l.done
		working.Go(func() { l.run(ctx) })
	} else if o.duration > 0 {
		timer := time.NewTimer(o.duration)
		defer timer.Stop()
		over = timer.C
	}

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := s.read(ctx)
	for {
		select {
		case <-tick.C:
			now := s.read(ctx)
			lines := []string{now.line(last)}
			if l != nil {
				lines = append(lines, l.line())
			}
			b.status(time.Since(began), o.duration, lines...)
			last = now
		case text := <-events:
			b.event(time.Since(began), text)
		case err := <-failed:
			return err
		case err := <-s.failed:
			return err
		case end := <-loaded:
			return errors.Join(o.conclude(b.out, end), rolling.unfinished())
		case <-over:
			return nil
		case <-ctx.Done():
			if l == nil {
				return nil
			}
			// What was seen so far counts, too; the driver stops at once.
			if err := o.conclude(b.out, <-loaded); err != nil {
				return err
			}
			return context.Cause(ctx)
		}
	}
}
