package admin

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
)

// Cleanup says which entries are to be removed from Redis, as [node.Clean] does.
type Cleanup struct {
	// Namespace of the entries, which need not have a cache any more; "" = the whole application.
	Namespace string
	// Prefix or Pattern of the ids; "" = whatever they are. They need a namespace.
	Prefix, Pattern string
	// OldGenerations: only entries of other generations than the present one.
	OldGenerations bool
	// Invalidate: what is found has also changed. It needs a namespace.
	Invalidate bool
	// Rate bounds the keys gone through in a second: 1 to 1,000,000; 0 = 10,000.
	Rate int
}

// cleanupBody is a clean-up on the wire.
type cleanupBody struct {
	Namespace      *string `json:"namespace"`
	Prefix         string  `json:"prefix,omitempty"`
	Pattern        string  `json:"pattern,omitempty"`
	OldGenerations bool    `json:"old_generations,omitempty"`
	Invalidate     bool    `json:"invalidate,omitempty"`
	Rate           int     `json:"rate,omitempty"`
}

func (a *API) cleanupPaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/cleanups": {
			"GET":    showing(a, func(_ context.Context, n *node.Node) (node.CleanStatus, error) { return n.CleanStatus(), nil }),
			"POST":   {do: a.startCleanup, guarded: true},
			"DELETE": {do: a.stopCleanup, guarded: true},
		},
	}
}

func (a *API) startCleanup(w http.ResponseWriter, r *http.Request) error {
	body, n, err := steering[cleanupBody](a, w, r)
	if err != nil {
		return err
	}
	c, wrong := body.check()
	if err := wrong.problem(); err != nil {
		return err
	}
	if !n.Stats().HasRedis {
		return refused("This replica has no Redis: there is nothing to clean.")
	}
	if err := n.StartClean(c); err != nil {
		return err
	}
	a.log.Info("admin: a clean-up was started", slog.String("namespace", c.Namespace), slog.Bool("some_ids", c.Prefix != "" || c.Pattern != ""),
		slog.Bool("old_generations", c.OldGenerations), slog.Bool("invalidate", c.Invalidate), slog.String("by", a.who(r)))
	return send(w, http.StatusAccepted, n.CleanStatus())
}

func (a *API) stopCleanup(w http.ResponseWriter, r *http.Request) error {
	n, err := a.bare(r)
	if err != nil {
		return err
	}
	running, err := n.StopClean(r.Context())
	switch {
	case err != nil:
		return err
	case !running:
		return notFound("No clean-up is under way on this replica.")
	}
	a.log.Info("admin: a clean-up was stopped", slog.String("by", a.who(r)))
	return send(w, http.StatusOK, n.CleanStatus())
}

// check returns what the body asks for, and what is wrong with it.
func (b cleanupBody) check() (c node.Clean, wrong faults) {
	c = node.Clean{Prefix: b.Prefix, Pattern: b.Pattern, OldGenerations: b.OldGenerations, Invalidate: b.Invalidate, Rate: b.Rate}
	some := b.Prefix != "" || b.Pattern != ""
	switch {
	case b.Namespace == nil:
		wrong.add("/namespace", `is missing; want that of the entries, or "" for the whole application`)
	case *b.Namespace == "" && (some || b.Invalidate):
		wrong.add("/namespace", "is empty; want that of the entities with prefix, pattern and invalidate")
	case *b.Namespace != "":
		c.Namespace = *b.Namespace
		if cluster.CheckNamespace(c.Namespace) != nil {
			wrong.add("/namespace", "is no name of a namespace; want a lower-case letter, then up to 63 of a-z 0-9 _ . -")
		}
	}
	wrong.bound("/prefix", b.Prefix, 0, cluster.MaxIDBytes)
	wrong.bound("/pattern", b.Pattern, 0, cluster.MaxIDBytes)
	if b.Prefix != "" && b.Pattern != "" {
		wrong.add("/pattern", "is given with prefix; want one of them")
	}
	if _, err := cluster.PrefixPattern(b.Prefix); b.Prefix != "" && err != nil {
		wrong.add("/prefix", "cannot be: %v", err)
	}
	if _, err := cluster.ParsePattern(b.Pattern); b.Pattern != "" && err != nil {
		wrong.add("/pattern", "cannot be: %v", err)
	}
	if b.Rate < 0 || b.Rate > tiers.MaxSweepRate {
		wrong.add("/rate", "is %d; want 1 to %d keys in a second, or 0 for 10000", b.Rate, tiers.MaxSweepRate)
	}
	return c, wrong
}

// CleanStatus is how far the clean-up of the replica has come that is under way, or what became of the last one.
func (c Client) CleanStatus(ctx context.Context) (node.CleanStatus, error) {
	return call[node.CleanStatus](ctx, c, http.MethodGet, "/admin/v1/cleanups", nil, nil)
}

// StartClean has the replica clean up in the background, one at a time.
func (c Client) StartClean(ctx context.Context, v Cleanup) (node.CleanStatus, error) {
	body := cleanupBody{&v.Namespace, v.Prefix, v.Pattern, v.OldGenerations, v.Invalidate, v.Rate}
	return call[node.CleanStatus](ctx, c, http.MethodPost, "/admin/v1/cleanups", nil, body)
}

// StopClean ends the clean-up of the replica, and returns what it has done.
func (c Client) StopClean(ctx context.Context) (node.CleanStatus, error) {
	return call[node.CleanStatus](ctx, c, http.MethodDelete, "/admin/v1/cleanups", nil, nil)
}
