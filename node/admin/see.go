package admin

import (
	"context"
	"net/http"

	"github.com/freshet-cache/freshet/node"
)

// Namespaces are the caches of a replica.
type Namespaces struct {
	Caches []node.CacheDescription `json:"caches"`
}

// Members are the replicas of the application, as the asked one knows them by their heartbeats.
type Members struct {
	// Asked is the replica that answers.
	Asked    string   `json:"asked"`
	Replicas []Member `json:"replicas"` // in the order of their names
}

// Member is one replica.
type Member struct {
	Replica string `json:"replica"`
	Address string `json:"address,omitempty"`
	// State is "ok"; "lagging", if what it knows of Postgres is older than its budget; "cut off", if it has no
	// connection to NATS; or "silent", if it gave no answer.
	State string `json:"state"`
	// Error says why there is no answer. What follows is then as of the last heartbeat, or zero.
	Error string `json:"error,omitempty"`
	// PollAge in seconds bounds the staleness of the replica's FRESH answers; a day if it knows nothing.
	PollAge float64 `json:"poll_age_seconds"`
	Budget  float64 `json:"budget_seconds"`
	// Loads run now.
	Loads int64 `json:"loads"`
	// Members are the replicas that it knows itself. Fewer than the others know: it does not hear them.
	Members int `json:"members"`
	// Boot names the start of its process, in decimal.
	Boot uint64 `json:"boot,string"`
}

// Shards are the Redis shards with their breakers as one replica sees them; none without Redis.
type Shards struct {
	Shards []node.ShardStats `json:"shards"`
}

// Watches are the tables that tell of their changes, and what the replicas found wrong with that.
type Watches struct {
	// Tables, or why they cannot be listed.
	Tables []node.WatchedTable `json:"tables"`
	Error  string              `json:"error,omitempty"`
	// Replicas are what each has found when it last checked.
	Replicas []node.Answer[WatchCheck] `json:"replicas"`
}

// WatchCheck is what the last check of the watches has found. While there is drift, nothing that is cached of its
// namespaces is FRESH.
type WatchCheck struct {
	Age   float64           `json:"age_seconds"` // of the check; a day if there was none
	Drift []node.DriftStats `json:"drift"`
}

func (a *API) seePaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/namespaces": {"GET": showing(a, func(_ context.Context, n *node.Node) (Namespaces, error) {
			return Namespaces{n.Caches()}, nil
		})},
		"/admin/v1/members": {"GET": showing(a, func(ctx context.Context, n *node.Node) (Members, error) {
			return membersOf(n.Stats(), n.StatsOfAll(ctx)), nil
		})},
		"/admin/v1/redis":    {"GET": showing(a, func(ctx context.Context, n *node.Node) (node.RedisSurvey, error) { return n.Redis(ctx) })},
		"/admin/v1/postgres": {"GET": showing(a, func(ctx context.Context, n *node.Node) (node.PostgresSurvey, error) { return n.Postgres(ctx) })},
		"/admin/v1/shards":   {"GET": {do: a.shards}},
		"/admin/v1/watches":  {"GET": {do: a.watches}},
	}
}

// statsOf are the statistics of this replica, or of all if the request asks for them.
func (a *API) statsOf(r *http.Request) (*node.Node, []node.Answer[node.Stats], error) {
	n, all, err := a.ofReplicas(r)
	if err != nil {
		return nil, nil, err
	}
	if all {
		return n, n.StatsOfAll(r.Context()), nil
	}
	s := n.Stats()
	return n, []node.Answer[node.Stats]{{Replica: s.ID, Answer: &s}}, nil
}

// each is a part of every answer.
func each[T, U any](answers []node.Answer[T], part func(*T) U) []node.Answer[U] {
	parts := make([]node.Answer[U], len(answers))
	for i, v := range answers {
		parts[i] = node.Answer[U]{Replica: v.Replica, Address: v.Address, Error: v.Error}
		if v.Answer != nil {
			p := part(v.Answer)
			parts[i].Answer = &p
		}
	}
	return parts
}

func (a *API) shards(w http.ResponseWriter, r *http.Request) error {
	_, stats, err := a.statsOf(r)
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, Told[Shards]{each(stats, func(s *node.Stats) Shards { return Shards{s.Shards} })})
}

func (a *API) watches(w http.ResponseWriter, r *http.Request) error {
	n, stats, err := a.statsOf(r)
	if err != nil {
		return err
	}
	v := Watches{Replicas: each(stats, func(s *node.Stats) WatchCheck { return WatchCheck{s.WatchAge, s.WatchDrift} })}
	if v.Tables, err = n.Watches(r.Context()); err != nil {
		v.Error = err.Error()
	}
	return send(w, http.StatusOK, v)
}

// membersOf says how each replica does, by its own word or else by its heartbeats.
func membersOf(asked node.Stats, all []node.Answer[node.Stats]) Members {
	m := Members{Asked: asked.ID, Replicas: make([]Member, len(all))}
	for i, v := range all {
		r := Member{Replica: v.Replica, Address: v.Address, Error: v.Error, State: "silent"}
		if s := v.Answer; s != nil {
			r.State = "ok"
			switch {
			case s.PollAge > s.Budget:
				r.State = "lagging"
			case s.HasNATS && !s.Connected:
				r.State = "cut off"
			}
			r.PollAge, r.Budget, r.Loads, r.Members, r.Boot = s.PollAge, s.Budget, s.Source.Running, len(s.Members), s.Boot
		} else {
			for _, h := range asked.Members {
				if h.ID == v.Replica && h.Address == v.Address {
					r.PollAge, r.Loads = h.PollAge, int64(h.Load)
				}
			}
		}
		m.Replicas[i] = r
	}
	return m
}

// Namespaces are the caches of the replica, with their settings.
func (c Client) Namespaces(ctx context.Context) ([]node.CacheDescription, error) {
	v, err := call[Namespaces](ctx, c, http.MethodGet, "/admin/v1/namespaces", nil, nil)
	return v.Caches, err
}

// Members are the replicas that it knows.
func (c Client) Members(ctx context.Context) (Members, error) {
	return call[Members](ctx, c, http.MethodGet, "/admin/v1/members", nil, nil)
}

// Shards are the Redis shards as all replicas see them, or the one alone.
func (c Client) Shards(ctx context.Context, all bool) ([]node.Answer[Shards], error) {
	told, err := call[Told[Shards]](ctx, c, http.MethodGet, "/admin/v1/shards", replicas(all), nil)
	return told.Replicas, err
}

// Watches are the watched tables, and what all replicas, or the one alone, found wrong with them.
func (c Client) Watches(ctx context.Context, all bool) (Watches, error) {
	return call[Watches](ctx, c, http.MethodGet, "/admin/v1/watches", replicas(all), nil)
}

// Redis is what every server of the Redis Cluster says.
func (c Client) Redis(ctx context.Context) (node.RedisSurvey, error) {
	return call[node.RedisSurvey](ctx, c, http.MethodGet, "/admin/v1/redis", nil, nil)
}

// Postgres is what Postgres says.
func (c Client) Postgres(ctx context.Context) (node.PostgresSurvey, error) {
	return call[node.PostgresSurvey](ctx, c, http.MethodGet, "/admin/v1/postgres", nil, nil)
}
