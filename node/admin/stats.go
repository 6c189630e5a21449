package admin

import (
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
		"/admin/v1/stats":         {"GET": {do: a.stats}},
		"/admin/v1/stats/all":     {"GET": {do: a.statsOfAll}},
		"/admin/v1/summary":       {"GET": {do: a.summary}},
		"/admin/v1/summary/reset": {"POST": {do: a.resetSummary, guarded: true}},
	}
}

func (a *API) stats(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, n.Stats())
}

func (a *API) statsOfAll(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, Told[node.Stats]{n.StatsOfAll(r.Context())})
}

func (a *API) summary(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "replicas")
	if err != nil {
		return err
	}
	all, err := allReplicas(values)
	if err != nil {
		return err
	}
	n, err := a.opened()
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
	values, err := parameters(r, "replicas")
	if err != nil {
		return err
	}
	all, err := allReplicas(values)
	if err != nil {
		return err
	}
	if err := empty(r); err != nil {
		return err
	}
	n, err := a.opened()
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
