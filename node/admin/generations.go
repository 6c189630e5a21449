package admin

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/freshet-cache/freshet/node"
)

// Generations are the present ones, as the asked replica knows them.
type Generations struct {
	Application uint32                `json:"application"` // of all namespaces
	Namespaces  []NamespaceGeneration `json:"namespaces"`  // that the replica has caches of, by name
}

// NamespaceGeneration is the number of one namespace.
type NamespaceGeneration struct {
	Namespace  string `json:"namespace"`
	Generation uint32 `json:"generation"`
}

// GenerationHistory are changes of one namespace's generation, or of the application's, the latest first.
type GenerationHistory struct {
	Changes []node.GenerationEvent `json:"changes"`
}

// ChangedGeneration is what a generation has become. A read with the token is of no other before it.
type ChangedGeneration struct {
	Namespace  string `json:"namespace"` // "" = the application
	Generation uint32 `json:"generation"`
	Token      string `json:"token"` // "" if it was the present one already
}

// generationChange is the part of a body that all changes of generations have.
type generationChange struct {
	Namespace *string `json:"namespace"` // "" = the application
	Why       string  `json:"why"`
	By        string  `json:"by,omitempty"`     // "" = who the credential names
	Expect    *uint32 `json:"expect,omitempty"` // nil = whatever it is
}

type generationSetting struct {
	generationChange
	Generation uint32 `json:"generation"`
}

type generationRollback struct {
	generationChange
	To *uint32 `json:"to,omitempty"` // nil = the one before the present one
}

func (a *API) generationPaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/generations":          {"GET": showing(a, generations)},
		"/admin/v1/generations/history":  {"GET": {do: a.generationHistory}},
		"/admin/v1/generations/next":     {"POST": {do: a.nextGeneration, guarded: true}},
		"/admin/v1/generations/set":      {"POST": {do: a.setGeneration, guarded: true}},
		"/admin/v1/generations/rollback": {"POST": {do: a.rollbackGeneration, guarded: true}},
	}
}

func generations(_ context.Context, n *node.Node) (Generations, error) {
	g := Generations{Application: n.Generation("").Global, Namespaces: []NamespaceGeneration{}}
	for _, c := range n.Caches() {
		g.Namespaces = append(g.Namespaces, NamespaceGeneration{c.Namespace, n.Generation(c.Namespace).Namespace})
	}
	g.Namespaces = slices.CompactFunc(g.Namespaces, func(a, b NamespaceGeneration) bool { return a.Namespace == b.Namespace })
	return g, nil
}

func (a *API) generationHistory(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "namespace", "limit")
	if err != nil {
		return err
	}
	limit, err := number(values, "limit", 1, 1000, 100)
	if err != nil {
		return err
	}
	namespace := values.Get("namespace")
	if err := checkText("namespace", namespace, 0, 64); err != nil {
		return err
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	changes, err := n.GenerationHistory(r.Context(), namespace, int(limit))
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, GenerationHistory{changes})
}

func (a *API) nextGeneration(w http.ResponseWriter, r *http.Request) error {
	body, n, err := steering[generationChange](a, w, r)
	if err != nil {
		return err
	}
	namespace, change, wrong := body.check(a, r, n)
	if err := wrong.problem(); err != nil {
		return err
	}
	number, token, err := n.NextGeneration(r.Context(), namespace, change)
	return a.changedGeneration(w, "increment", change, ChangedGeneration{namespace, number, token.String()}, err)
}

func (a *API) setGeneration(w http.ResponseWriter, r *http.Request) error {
	body, n, err := steering[generationSetting](a, w, r)
	if err != nil {
		return err
	}
	namespace, change, wrong := body.check(a, r, n)
	if body.Generation == 0 {
		wrong.add("/generation", "is missing or 0; want the number that it is to become, 1 or more")
	}
	if err := wrong.problem(); err != nil {
		return err
	}
	token, err := n.SetGeneration(r.Context(), namespace, body.Generation, change)
	return a.changedGeneration(w, "set", change, ChangedGeneration{namespace, body.Generation, token.String()}, err)
}

func (a *API) rollbackGeneration(w http.ResponseWriter, r *http.Request) error {
	body, n, err := steering[generationRollback](a, w, r)
	if err != nil {
		return err
	}
	namespace, change, wrong := body.check(a, r, n)
	var to uint32
	if body.To != nil {
		if to = *body.To; to == 0 {
			wrong.add("/to", "is 0; want a number that it has had, or nothing for the one before the present one")
		}
	}
	if err := wrong.problem(); err != nil {
		return err
	}
	number, token, err := n.RollbackGeneration(r.Context(), namespace, to, change)
	return a.changedGeneration(w, "rollback", change, ChangedGeneration{namespace, number, token.String()}, err)
}

// check returns the namespace and the change that the body asks for, and what is wrong with them.
func (c generationChange) check(a *API, r *http.Request, n *node.Node) (namespace string, change node.GenerationChange, wrong faults) {
	switch {
	case c.Namespace == nil:
		wrong.add("/namespace", `is missing; want that of a cache, or "" for the whole application`)
	case *c.Namespace != "":
		namespace = *c.Namespace
		wrong.namespace(n, "/namespace", namespace)
	}
	wrong.bound("/why", c.Why, 1, maxWhy)
	wrong.bound("/by", c.By, 0, maxBy)
	change = node.GenerationChange{Why: c.Why, By: c.By}
	if change.By == "" {
		change.By = a.who(r)
	}
	if c.Expect != nil {
		if change.Expect = *c.Expect; change.Expect == 0 {
			wrong.add("/expect", "is 0; want the number that must be the present one, or nothing for whatever it is")
		}
	}
	return namespace, change, wrong
}

// changedGeneration tells of a change that was made, or not.
func (a *API) changedGeneration(w http.ResponseWriter, action string, change node.GenerationChange, is ChangedGeneration, err error) error {
	if err != nil {
		return steered(err)
	}
	a.log.Info("admin: a generation was changed", slog.String("action", action), slog.String("namespace", is.Namespace),
		slog.Uint64("generation", uint64(is.Generation)), slog.String("by", change.By))
	return send(w, http.StatusOK, is)
}

// Generations are those of the application and of each namespace, as the replica knows them.
func (c Client) Generations(ctx context.Context) (Generations, error) {
	return call[Generations](ctx, c, http.MethodGet, "/admin/v1/generations", nil, nil)
}

// GenerationHistory returns the last changes of the namespace's generation, or with "" of the application's, the
// latest first: as many as limit, 1 to 1,000; 0 = 100.
func (c Client) GenerationHistory(ctx context.Context, namespace string, limit int) ([]node.GenerationEvent, error) {
	query := url.Values{"namespace": {namespace}}
	if limit != 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	history, err := call[GenerationHistory](ctx, c, http.MethodGet, "/admin/v1/generations/history", query, nil)
	return history.Changes, err
}

// NextGeneration is [node.Node.NextGeneration] on the replica. By is who the credential names, if it is empty.
func (c Client) NextGeneration(ctx context.Context, namespace string, change node.GenerationChange) (ChangedGeneration, error) {
	return call[ChangedGeneration](ctx, c, http.MethodPost, "/admin/v1/generations/next", nil, changeOf(namespace, change))
}

// SetGeneration is [node.Node.SetGeneration] on the replica.
func (c Client) SetGeneration(ctx context.Context, namespace string, number uint32, change node.GenerationChange) (ChangedGeneration, error) {
	body := generationSetting{changeOf(namespace, change), number}
	return call[ChangedGeneration](ctx, c, http.MethodPost, "/admin/v1/generations/set", nil, body)
}

// RollbackGeneration is [node.Node.RollbackGeneration] on the replica.
func (c Client) RollbackGeneration(ctx context.Context, namespace string, to uint32, change node.GenerationChange) (ChangedGeneration, error) {
	body := generationRollback{generationChange: changeOf(namespace, change)}
	if to != 0 {
		body.To = &to
	}
	return call[ChangedGeneration](ctx, c, http.MethodPost, "/admin/v1/generations/rollback", nil, body)
}

func changeOf(namespace string, c node.GenerationChange) generationChange {
	change := generationChange{Namespace: &namespace, Why: c.Why, By: c.By}
	if c.Expect != 0 {
		change.Expect = &c.Expect
	}
	return change
}
