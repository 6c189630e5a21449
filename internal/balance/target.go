package balance

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// targetState is a target with what is known about it.
type targetState struct {
	Target
	stop     context.CancelFunc // of its watch
	ready    atomic.Bool
	inFlight atomic.Int64
	requests atomic.Uint64
	errors   atomic.Uint64
}

// watch asks the target's readiness until ctx ends.
func (b *Balancer) watch(ctx context.Context, t *targetState) {
	tick := time.NewTicker(b.config.checkInterval())
	defer tick.Stop()
	for {
		t.ready.Store(b.check(ctx, t))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// check reports whether the target says that it is ready.
func (b *Balancer) check(ctx context.Context, t *targetState) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Admin+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := b.checks.Do(req)
	if err != nil {
		return false
	}
	// An unread body costs the connection, not correctness; readiness bodies are short.
	defer resp.Body.Close()
	drain(resp.Body)
	return resp.StatusCode == http.StatusOK
}

// pick chooses the target with the fewest requests in flight among the ready ones that are not in
// tried, else among the others that are not in tried; nil = none left.
func (b *Balancer) pick(tried []*targetState) *targetState {
	targets := *b.targets.Load()
	if len(targets) == 0 {
		return nil
	}
	start := b.turn.Add(1)
	var best *targetState
	for i := range targets {
		t := targets[(start+uint64(i))%uint64(len(targets))]
		if slices.Contains(tried, t) {
			continue
		}
		switch {
		case best == nil,
			t.ready.Load() && !best.ready.Load(),
			t.ready.Load() == best.ready.Load() && t.inFlight.Load() < best.inFlight.Load():
			best = t
		}
	}
	return best
}
