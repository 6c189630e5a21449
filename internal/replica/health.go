package replica

import (
	"fmt"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// health is the body of /readyz of a replica in service. Its checks are of the parts it was told of.
func (c Config) health(s node.Stats) Health {
	h := Health{Status: "ready", Checks: map[string]string{"postgres": "ok"}}
	degrade := func(check, format string, args ...any) {
		h.Status = "degraded"
		h.Checks[check] = fmt.Sprintf(format, args...)
	}
	if age := time.Duration(s.PollAge * float64(time.Second)); age > c.budget() {
		degrade("postgres", "last poll %v ago, more than the budget of %v", age.Round(time.Millisecond), c.budget())
	}
	if len(c.Redis) > 0 {
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
	return h
}
