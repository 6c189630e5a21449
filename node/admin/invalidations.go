package admin

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
)

// Invalidation says what has changed, and how that takes effect: one of IDs, Tags and All.
type Invalidation struct {
	// Namespace of the entities, which has a cache on the replica; none with Tags, which are of all namespaces.
	Namespace string `json:"namespace,omitempty"`
	// IDs of entities and Tags of entries: 1 to [node.MaxIDs].
	IDs  []string `json:"ids,omitempty"`
	Tags []string `json:"tags,omitempty"`
	// All: every entry of the namespace.
	All bool `json:"all,omitempty"`
	// View: only that view of the entities; "" = all views. Only with IDs.
	View string `json:"view,omitempty"`
	// After is the delay in seconds, 0.001 up to [node.MaxDelay]; 0 = at once, or, with Batch, when it is run.
	After float64 `json:"after_seconds,omitempty"`
	// Grace in seconds, 0.001 up to [node.MaxGrace], is how long values from before may still be served, labelled, while
	// they are loaded anew; 0 = none.
	Grace float64 `json:"grace_seconds,omitempty"`
	// Batch is the named batch that it goes into, 1 to 200 characters; "" = none.
	Batch string `json:"batch,omitempty"`
}

// Invalidated is the answer to an invalidation. A read with the token knows of it.
type Invalidated struct {
	Token string `json:"token"`
}

func (a *API) invalidationPaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/invalidations": {"POST": {do: a.invalidate, guarded: true}},
	}
}

func (a *API) invalidate(w http.ResponseWriter, r *http.Request) error {
	body, n, err := steering[Invalidation](a, w, r)
	if err != nil {
		return err
	}
	if err := body.check(n).problem(); err != nil {
		return err
	}
	strategies := body.strategies()
	var token node.Token
	switch {
	case body.All:
		token, err = n.InvalidateNamespace(r.Context(), body.Namespace, strategies...)
	case body.Tags != nil:
		token, err = n.InvalidateTag(r.Context(), body.Tags, strategies...)
	default:
		token, err = n.Invalidate(r.Context(), body.Namespace, body.IDs, strategies...)
	}
	if err != nil {
		return steered(err)
	}
	a.log.Info("admin: invalidated", slog.String("namespace", body.Namespace), slog.String("view", body.View), slog.Int("ids", len(body.IDs)),
		slog.Int("tags", len(body.Tags)), slog.Bool("all", body.All), slog.Duration("after", inSeconds(body.After)),
		slog.Duration("grace", inSeconds(body.Grace)), slog.String("batch", body.Batch), slog.String("by", a.who(r)))
	return send(w, http.StatusOK, Invalidated{token.String()})
}

// check is what is wrong with it. Ids and tags are named by their places only.
func (v Invalidation) check(n *node.Node) (wrong faults) {
	given := 0
	for _, is := range []bool{v.IDs != nil, v.Tags != nil, v.All} {
		if is {
			given++
		}
	}
	if given != 1 {
		wrong.add("", "has %d of ids, tags and all: true; want one of them", given)
	}
	switch {
	case v.Tags == nil:
		wrong.namespace(n, "/namespace", v.Namespace)
	case v.Namespace != "":
		wrong.add("/namespace", "is given with tags, which are of all namespaces; want it with ids or all")
	}
	wrong.list("/ids", v.IDs, cluster.MaxIDBytes)
	wrong.list("/tags", v.Tags, math.MaxInt)
	isView := func(c node.NamespaceStats) bool { return c.Namespace == v.Namespace && c.View == v.View }
	switch {
	case v.View == "":
	case v.IDs == nil:
		wrong.add("/view", "is given without ids; want it with them, since tags and namespaces are of all views")
	case !slices.ContainsFunc(n.Stats().Namespaces, isView):
		wrong.add("/view", "%.64q is no view that has a cache here", v.View)
	}
	wrong.seconds("/after_seconds", v.After, node.MaxDelay)
	wrong.seconds("/grace_seconds", v.Grace, node.MaxGrace)
	wrong.bound("/batch", v.Batch, 0, maxBatch)
	return wrong
}

// list adds a fault for each text that is empty, too long or not one for Postgres, and for none or too many of them.
func (f *faults) list(pointer string, texts []string, most int) {
	if texts != nil && (len(texts) == 0 || len(texts) > node.MaxIDs) {
		f.add(pointer, "has %d; want 1 to %d", len(texts), node.MaxIDs)
	}
	for i, text := range texts {
		switch at := fmt.Sprintf("%s/%d", pointer, i); {
		case text == "":
			f.add(at, "is empty")
		case len(text) > most:
			f.add(at, "has %d bytes; want at most %d", len(text), most)
		case strings.ContainsRune(text, 0):
			f.add(at, "holds the character NUL; want it without")
		}
	}
}

// seconds adds a fault unless the duration is 0, or 1 ms up to most.
func (f *faults) seconds(pointer string, s float64, most time.Duration) {
	if s != 0 && (s < 0.001 || s > most.Seconds()) {
		f.add(pointer, "is %v; want 0.001 to %v, or 0 for none", s, most.Seconds())
	}
}

func inSeconds(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }

// strategies are those of an invalidation that has been checked.
func (v Invalidation) strategies() []node.Strategy {
	var all []node.Strategy
	if v.View != "" {
		all = append(all, node.View(v.View))
	}
	if v.After > 0 {
		all = append(all, node.After(inSeconds(v.After)))
	}
	if v.Grace > 0 {
		all = append(all, node.WithGrace(inSeconds(v.Grace)))
	}
	if v.Batch != "" {
		all = append(all, node.Batch(v.Batch))
	}
	return all
}

// Invalidate says what has changed. The token is for reads that must know of it.
func (c Client) Invalidate(ctx context.Context, v Invalidation) (Invalidated, error) {
	return call[Invalidated](ctx, c, http.MethodPost, "/admin/v1/invalidations", nil, v)
}
