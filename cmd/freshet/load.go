package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/internal/replay"
	"github.com/freshet-cache/freshet/internal/trace"
)

// zipfSkew is that of the synthetic keys: the constant of the YCSB benchmark.
const zipfSkew = 0.99

// load is the traffic that `up` sends through the balancer, with the checker of its answers.
type load struct {
	driver *replay.Driver
	db     *sqlx.DB
	keys   io.Closer    // nil for synthetic ones
	done   chan outcome // one value, sent by run
}

// outcome is what came of a load.
type outcome struct {
	report replay.Report
	err    error // there could be no run
}

// newLoad prepares the load that the options ask for. Close it.
func newLoad(s *stand) (_ *load, err error) {
	o := s.options
	l := &load{done: make(chan outcome, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	keys, err := l.open(o)
	if err != nil {
		return nil, err
	}
	if l.db, err = sqlx.Open("postgres", s.stack.Postgres.DSN()); err != nil {
		return nil, err
	}
	l.db.SetMaxOpenConns(16)
	l.db.SetMaxIdleConns(16)
	lists := float64(o.lists)
	if lists == 0 {
		lists = -1 // none; the driver's 0 is its default
	}
	probes := 0.0 // the driver's default
	if o.restart != "" {
		probes = -1 // their reads would count in the hit ratios
	}
	l.driver, err = replay.New(replay.Config{
		Targets:  []string{s.url},
		Replicas: s.targets,
		DB:       l.db.DB,
		Source:   keys,
		Rate:     o.rate,
		Duration: o.duration,
		Writes:   float64(o.writes),
		Lists:    lists,
		Seed:     o.seed,
		Default:  o.budget,
		Probes:   probes,
	})
	return l, err
}

// open is the source of keys: the trace, again from its start after its end, or synthetic ones.
func (l *load) open(o upOptions) (replay.Source, error) {
	if o.replay == "" {
		return trace.NewZipf(o.products, zipfSkew, o.seed)
	}
	r, err := trace.Open(o.replay, trace.Format(o.format))
	if err != nil {
		return nil, fmt.Errorf("--replay: %w", err)
	}
	l.keys = r
	return trace.NewLoop(r), nil
}

// targets are the running replicas as the driver wants them.
func (s *stand) targets() []replay.Replica {
	var targets []replay.Replica
	for _, c := range s.running() {
		targets = append(targets, replay.Replica{ID: c.id, API: c.api, Admin: c.admin})
	}
	return targets
}

// run drives the load to its end, or ctx's.
func (l *load) run(ctx context.Context) {
	report, err := l.driver.Run(ctx)
	l.done <- outcome{report, err}
}

// line is the part of the status that the driver knows.
func (l *load) line() string {
	p := l.driver.Progress()
	var b strings.Builder
	fmt.Fprintf(&b, "change p99 %s  staleness max %s  violations %d", short(p.Change), short(p.Staleness), p.Violations)
	if p.Errors > 0 {
		fmt.Fprintf(&b, "  errors %d", p.Errors)
	}
	if p.Dropped > 0 {
		fmt.Fprintf(&b, "  dropped %d", p.Dropped)
	}
	if p.Fault != "" {
		fmt.Fprintf(&b, "  FAULT %s", p.Fault)
	}
	return b.String()
}

// short is a duration in milliseconds, with one digit behind the point.
func short(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func (l *load) close() error {
	var errs []error
	if l.db != nil {
		errs = append(errs, l.db.Close())
	}
	if l.keys != nil {
		errs = append(errs, l.keys.Close())
	}
	return errors.Join(errs...)
}
