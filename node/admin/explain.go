package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/freshet-cache/freshet/node"
)

// explainTimeout bounds the explanation of this replica alone, which may wait for Redis.
const explainTimeout = 2 * time.Second

func (a *API) explainPaths() map[string]methods {
	return map[string]methods{"/admin/v1/explain": {"GET": {do: a.explain}}}
}

// explain says of one entry what this replica, or each of all, knows of it.
func (a *API) explain(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "namespace", "view", "id", "replicas")
	if err != nil {
		return err
	}
	var faults []fault
	for _, name := range []string{"namespace", "id"} {
		if values.Get(name) == "" {
			faults = append(faults, fault{Parameter: name, Detail: "is missing"})
		}
	}
	if faults != nil {
		return badRequest(faults...)
	}
	all, err := allReplicas(values)
	if err != nil {
		return err
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	namespace, view, id := values.Get("namespace"), values.Get("view"), values.Get("id")
	if all {
		answers := n.ExplainAll(r.Context(), namespace, view, id)
		for _, v := range answers {
			if v.Answer != nil {
				return send(w, http.StatusOK, Told[node.Explanation]{answers})
			}
		}
	}
	// Of this replica alone, or why no replica can say anything.
	ctx, cancel := context.WithTimeout(r.Context(), explainTimeout)
	defer cancel()
	e, err := n.Explain(ctx, namespace, view, id)
	switch {
	case errors.Is(err, node.ErrNoCache):
		return notFound(err.Error())
	case errors.Is(err, node.ErrBadID):
		return badRequest(fault{Parameter: "id", Detail: err.Error()})
	case err != nil:
		return err
	}
	return send(w, http.StatusOK, Told[node.Explanation]{[]node.Answer[node.Explanation]{{Replica: n.ID(), Answer: &e}}})
}

// Explain is what all replicas know of an entry, or the one alone. View "" is "detail"; the id of a query's result is
// the text of all its parameters, as in a URL: "category=7&limit=10", or "?" without any.
func (c Client) Explain(ctx context.Context, namespace, view, id string, all bool) ([]node.Answer[node.Explanation], error) {
	query := url.Values{"namespace": {namespace}, "id": {id}}
	if view != "" {
		query.Set("view", view)
	}
	if all {
		query.Set("replicas", "all")
	}
	told, err := call[Told[node.Explanation]](ctx, c, http.MethodGet, "/admin/v1/explain", query, nil)
	return told.Replicas, err
}
