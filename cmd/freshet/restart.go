package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/internal/replay"
)

// order is that of the two halves of a restart, as a flag. "" = no restarts.
type order string

const (
	startFirst order = "start-first" // the successor is in service before the replica drains: maxSurge 1 of Kubernetes
	stopFirst  order = "stop-first"  // the replica has drained before its successor starts: maxUnavailable 1
)

func orders() []string { return []string{string(startFirst), string(stopFirst)} }

// Set implements [pflag.Value].
func (o *order) Set(s string) error {
	if s != "" && !slices.Contains(orders(), s) {
		return fmt.Errorf("%.20q; want one of %s", s, strings.Join(orders(), ", "))
	}
	*o = order(s)
	return nil
}

// String implements [pflag.Value].
func (o order) String() string { return string(o) }

// Type implements [pflag.Value].
func (order) Type() string { return "order" }

// restartRun restarts all replicas, one after the other, each when the one before it serves as well as it did, and then
// ends the load.
type restartRun struct {
	stand  *stand
	load   *load
	events chan<- string // what happened, for the board; room for all that run sends
	failed chan<- error  // a replica could not be restarted; room for it
	over   chan struct{} // closed when all have been restarted
}

// run does it, unless ctx ends before.
func (r *restartRun) run(ctx context.Context) {
	o := r.stand.options
	if o.restart == "" || !pause(ctx, o.at) {
		return
	}
	for i := range o.replicas {
		if err := r.one(ctx, i); err != nil {
			if ctx.Err() == nil {
				r.failed <- fmt.Errorf("--restart %s: %w", o.restart, err)
			}
			return
		}
	}
	close(r.over)
	r.load.driver.Finish()
}

// unfinished is the error of a load that has ended before all replicas were restarted.
func (r *restartRun) unfinished() error {
	if r.stand.options.restart == "" {
		return nil
	}
	select {
	case <-r.over:
		return nil
	default:
		return errors.New("--restart: the load ended before all replicas were restarted; give it more time by --for")
	}
}

// one restarts replica number i.
func (r *restartRun) one(ctx context.Context, i int) error {
	s := r.stand
	old := s.replica(i)
	told, err := r.load.driver.Restart(ctx, old.id)
	if err != nil {
		return err
	}
	drain := func() error {
		told.Draining()
		if err := old.stop(); err != nil {
			return err
		}
		told.Drained()
		return nil
	}
	if s.options.restart == stopFirst {
		r.events <- "restart: draining " + old.id
		if err := drain(); err != nil {
			return err
		}
		if err := s.startReplica(ctx, i, old.id); err != nil {
			return err
		}
		told.Ready(ctx, old.id)
	} else {
		successor := old.id + ".2" // two of the same name would take each other for an impostor
		r.events <- "restart: starting " + successor + " and draining " + old.id
		if err := s.startReplica(ctx, i, successor); err != nil {
			return err
		}
		told.Ready(ctx, successor)
		err := drain()
		s.balancer.Remove(old.id)
		if err != nil {
			return err
		}
	}
	r.events <- "restart: " + describeRestart(told.Recover(ctx))
	return nil
}

// describeRestart tells what came of a restart.
func describeRestart(r replay.RestartReport) string {
	back := func(s *float64) string {
		if s == nil {
			return "not back within " + replay.RecoveryLimit.String()
		}
		return fmt.Sprintf("back %.1f s after it was in service", *s)
	}
	return fmt.Sprintf("%s by %s: drained in %.1f s, %d requests failed; l1 %.1f%%, hits %.1f%% before: %s (l1 %.1f%%, hits %.1f%%), of all replicas %s",
		r.Replica, r.Successor, r.DrainS, r.Failed, 100*r.Before.L1, 100*r.Before.Hits,
		back(r.RecoveredS), 100*r.After.L1, 100*r.After.Hits, back(r.AllRecoveredS))
}

// restartTime is about how long the restart of one replica takes, for --for.
const restartTime = 30 * time.Second
