package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/internal/devstack"
	"github.com/freshet-cache/freshet/internal/replay"
)

// fault is what --kill does, as a flag. "" is none.
type fault string

const (
	faultShard   fault = "redis-shard" // SIGKILL one Redis primary; its replica takes over meanwhile
	faultRedis   fault = "redis"       // SIGKILL all six Redis servers
	faultNATS    fault = "nats"        // stop the NATS server
	faultReplica fault = "replica"     // SIGKILL one replica of the API
)

// faultTime is how long a fault lasts.
const faultTime = 5 * time.Second

func faults() []string {
	return []string{string(faultShard), string(faultRedis), string(faultNATS), string(faultReplica)}
}

// Set implements [pflag.Value].
func (f *fault) Set(s string) error {
	if s != "" && !slices.Contains(faults(), s) {
		return fmt.Errorf("%.20q; want one of %s", s, strings.Join(faults(), ", "))
	}
	*f = fault(s)
	return nil
}

// String implements [pflag.Value].
func (f fault) String() string { return string(f) }

// Type implements [pflag.Value].
func (fault) Type() string { return "part" }

// episode is a fault that was injected.
type episode struct {
	what string
	heal func(context.Context) error // restores what was killed and waits until it works again
}

// inject does the fault.
func (s *stand) inject(f fault) (episode, error) {
	switch f {
	case faultShard:
		var primary *devstack.RedisNode
		err := errors.New("not asked")
		for tries := 0; err != nil && tries < 10; tries++ { // on a starved machine the answer takes long
			primary, err = s.stack.Redis.Primary(0)
		}
		if err != nil {
			return episode{}, err
		}
		return episode{"SIGKILL of the Redis primary " + primary.Addr(), primary.Start}, primary.Kill()
	case faultRedis:
		return episode{"SIGKILL of all six Redis servers", s.stack.Redis.StartAll}, s.stack.Redis.KillAll()
	case faultNATS:
		start := func(context.Context) error { return s.stack.NATS.Start() }
		return episode{"stop of the NATS server " + s.stack.NATS.URL(), start}, s.stack.NATS.Stop()
	case faultReplica:
		const victim = 0
		c := s.replica(victim)
		restart := func(ctx context.Context) error { return s.startReplica(ctx, victim, c.id) }
		return episode{"SIGKILL of " + c.id + ", process " + strconv.Itoa(c.command.Process.Pid), restart}, c.kill()
	default:
		return episode{}, fmt.Errorf("--kill: unknown part %q", string(f))
	}
}

// faultRun injects the fault that the options ask for, once, and heals it.
type faultRun struct {
	stand  *stand
	load   *load         // told of it; nil = none
	events chan<- string // what happened, for the board; room for all that run sends
	failed chan<- error  // the fault could not be injected or healed; room for it
}

// run does the fault, unless ctx ends before.
func (r *faultRun) run(ctx context.Context) {
	kill := r.stand.options.kill
	if kill == "" || !pause(ctx, r.stand.options.at) {
		return
	}
	var told *replay.Fault
	if r.load != nil {
		told = r.load.driver.Fault(string(kill))
	}
	began := time.Now()            // killing takes a moment, too
	e, err := r.stand.inject(kill) //nolint:contextcheck // breaking a part is bounded by the stack, and not to be left half done
	if err != nil {
		r.failed <- fmt.Errorf("--kill %s: %w", kill, err)
		return
	}
	r.events <- "fault: " + e.what
	if !pause(ctx, faultTime-time.Since(began)) {
		return
	}
	r.events <- "restoring " + string(kill)
	if err := e.heal(ctx); err != nil {
		if ctx.Err() == nil {
			r.failed <- fmt.Errorf("--kill %s: restore: %w", kill, err)
		}
		return
	}
	if told != nil {
		told.Healed()
	}
	r.events <- "restored"
}

// pause reports whether the time went by before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
