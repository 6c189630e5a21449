package admin

import (
	"context"
	"net/http"

	"github.com/freshet-cache/freshet/node"
)

// Told is the answer to a question that all replicas were asked: of this application, as the asked replica knows
// them.
type Told[T any] struct {
	Replicas []node.Answer[T] `json:"replicas"`
}

// Summed is a summary over replicas, and each of theirs.
type Summed struct {
	Sum      node.Summary                `json:"sum"`
	Replicas []node.Answer[node.Summary] `json:"replicas"`
}

func (a *API) statsPaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/stats": {"GET": showing(a, func(_ context.Context, n *node.Node) (node.Stats, error) { return n.Stats(), nil })},
		"/admin/v1/stats/all": {"GET": showing(a, func(ctx context.Context, n *node.Node) (Told[node.Stats], error) {
			return Told[node.Stats]{n.StatsOfAll(ctx)}, nil
		})},
		"/admin/v1/summary":       {"GET": {do: a.summary}},
		"/admin/v1/summary/reset": {"POST": {do: a.resetSummary, guarded: true}},
	}
}

func (a *API) summary(w http.ResponseWriter, r *http.Request) error {
	n, all, err := a.ofReplicas(r)
	if err != nil {
		return err
	}
	if all {
		sum, each := n.SummaryOfAll(r.Context())
		return send(w, http.StatusOK, Summed{sum, each})
	}
	return send(w, http.StatusOK, alone(n, n.Summary()))
}

func (a *API) resetSummary(w http.ResponseWriter, r *http.Request) error {
	n, all, err := a.ofReplicas(r)
	if err == nil {
		err = empty(r)
	}
	if err != nil {
		return err
	}
	a.log.Info("admin: the window of the summary is reset", "all", all)
	if all {
		sum, each := n.ResetSummaryOfAll(r.Context())
		return send(w, http.StatusOK, Summed{sum, each})
	}
	return send(w, http.StatusOK, alone(n, n.ResetSummary()))
}

// alone is the summary of one replica in the form of several.
func alone(n *node.Node, s node.Summary) Summed {
	return Summed{Sum: s, Replicas: []node.Answer[node.Summary]{{Replica: n.ID(), Answer: &s}}}
}

// Stats are those of the replica.
func (c Client) Stats(ctx context.Context) (node.Stats, error) {
	return call[node.Stats](ctx, c, http.MethodGet, "/admin/v1/stats", nil, nil)
}

// StatsOfAll are those of every replica that it knows.
func (c Client) StatsOfAll(ctx context.Context) ([]node.Answer[node.Stats], error) {
	told, err := call[Told[node.Stats]](ctx, c, http.MethodGet, "/admin/v1/stats/all", nil, nil)
	return told.Replicas, err
}

// Summary is that of all replicas, or of the one alone.
func (c Client) Summary(ctx context.Context, all bool) (Summed, error) {
	return call[Summed](ctx, c, http.MethodGet, "/admin/v1/summary", replicas(all), nil)
}

// ResetSummary begins a new window on all replicas, or on the one alone, and returns the summary of the one before.
func (c Client) ResetSummary(ctx context.Context, all bool) (Summed, error) {
	return call[Summed](ctx, c, http.MethodPost, "/admin/v1/summary/reset", replicas(all), nil)
}
