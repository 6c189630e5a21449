package admin

import (
	"fmt"
	"net/http"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// Health is the body of the probes.
type Health struct {
	// Status is "starting", "ready", "degraded" (ready, but not every check is ok), "draining" or "alive".
	Status string `json:"status"`
	// Checks are what degrades: a part's name -> "ok" or what is wrong. None of them makes a replica unready.
	Checks map[string]string `json:"checks,omitempty"`
}

func (a *API) probePaths() map[string]methods {
	return map[string]methods{
		"/startupz": {"GET": {do: a.startup}},
		"/readyz":   {"GET": {do: a.ready}},
		"/livez": {"GET": {do: func(w http.ResponseWriter, _ *http.Request) error {
			return send(w, http.StatusOK, Health{Status: "alive"})
		}}},
	}
}

func (a *API) startup(w http.ResponseWriter, _ *http.Request) error {
	if !a.started.Load() {
		return send(w, http.StatusServiceUnavailable, Health{Status: "starting"})
	}
	return send(w, http.StatusOK, Health{Status: "ready"})
}

func (a *API) ready(w http.ResponseWriter, _ *http.Request) error {
	n := a.node.Load()
	switch {
	case a.draining.Load():
		return send(w, http.StatusServiceUnavailable, Health{Status: "draining"})
	case !a.started.Load() || n == nil:
		return send(w, http.StatusServiceUnavailable, Health{Status: "starting"})
	}
	return send(w, http.StatusOK, healthOf(n.Stats()))
}

// healthOf is the body of /readyz of a replica in service. Its checks are of the parts that the node has.
func healthOf(s node.Stats) Health {
	h := Health{Status: "ready", Checks: map[string]string{"postgres": "ok"}}
	degrade := func(check, format string, args ...any) {
		h.Status = "degraded"
		h.Checks[check] = fmt.Sprintf(format, args...)
	}
	if s.PollAge > s.Budget {
		degrade("postgres", "last poll %v ago, more than the budget of %v", seconds(s.PollAge), seconds(s.Budget))
	}
	if s.HasRedis {
		h.Checks["redis"] = "ok"
		if len(s.Shards) == 0 {
			degrade("redis", "no shard is known yet")
		}
		for _, shard := range s.Shards {
			if shard.State != "closed" {
				degrade("redis", "the breaker of shard %s is %s", shard.Name, shard.State)
			}
		}
	}
	if s.HasNATS {
		h.Checks["nats"] = "ok"
		if !s.Connected {
			degrade("nats", "there is no connection: changes of other replicas are found by polling")
		}
	}
	if len(s.WatchDrift) > 0 {
		d := s.WatchDrift[0]
		degrade("watches", "%d problems, the first is of table %s: %s", len(s.WatchDrift), d.Relation, d.Problem)
	}
	return h
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond)
}
