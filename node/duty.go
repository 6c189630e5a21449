package node

import (
	"context"
	"math/rand/v2"
	"time"
)

// duty is work that comes up from time to time and that one replica does for all: whoever gets to it
// first, by a lock or a row in Postgres that the others skip; or that each does for itself. Each has a
// goroutine of its own.
type duty struct {
	name string
	// every is the time between two runs, with a fifth of it as jitter either way, so that replicas do not
	// act in step. After a run that failed it is less, and doubles from 100 ms on.
	every time.Duration
	// run does what there is to do and returns. It is never run twice at once on one node. Its context ends
	// when the node closes, and it must heed it.
	run func(ctx context.Context) error
	// wake asks for a run before its time; sent without waiting by whoever knows of work. nil = nobody does.
	wake chan struct{}
}

// minDutyPause is how long a duty waits after its first failure.
const minDutyPause = 100 * time.Millisecond

// duties are those of this node, in no order. They may use all of its parts.
func (n *Node) duties() []duty {
	var all []duty
	if n.parts.Loads != nil {
		all = append(all, duty{name: "check of the watches", every: n.config.watchInterval(), run: n.checkWatches, wake: n.watches.wake})
	}
	if n.parts.DB != nil {
		all = append(all, duty{name: "trim what was applied of later puts", every: time.Minute, run: n.trimApplied})
	}
	if n.parts.Database != nil {
		all = append(all, duty{name: "run what is due", every: time.Second, run: n.runDue, wake: n.due.wake})
	}
	if n.config.Verify.Every > 0 {
		all = append(all, duty{name: "compare a sample with the source", every: n.config.Verify.Every, run: n.verify})
	}
	if n.sweeper != nil && n.parts.DB != nil {
		all = append(all, duty{name: "remove old generations", every: generationsEvery, run: n.cleanGenerations})
	}
	return all
}

// startDuties sets them to work until ctx ends; n.dutyWork waits for them.
func (n *Node) startDuties(ctx context.Context) {
	for _, d := range n.duties() {
		n.dutyWork.Go(func() { n.serve(ctx, d) })
	}
}

// serve is the goroutine of a duty.
func (n *Node) serve(ctx context.Context, d duty) {
	timer := time.NewTimer(dutyJitter(d.every))
	defer timer.Stop()
	var pause time.Duration // after a failure; 0 = the last run did not fail
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.wake:
		}
		err := d.run(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && pause > 0:
			n.log.Info("node: a duty works again", "duty", d.name)
			pause = 0
		case err != nil && pause == 0:
			n.log.Warn("node: a duty fails; it is tried again", "duty", d.name, "error", err)
			pause = minDutyPause
		case err != nil:
			pause = min(2*pause, max(d.every, minDutyPause))
		}
		if pause > 0 {
			timer.Reset(dutyJitter(pause))
		} else {
			timer.Reset(dutyJitter(d.every))
		}
	}
}

// dutyJitter is d within a fifth of it either way.
func dutyJitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(max(2*d/5, 1))
}
