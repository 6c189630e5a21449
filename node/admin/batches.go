package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/freshet-cache/freshet/node"
)

// Batches are those that have something in them, by name, at most [node.MaxBatches].
type Batches struct {
	Batches []node.BatchStats `json:"batches"`
}

// RanBatch is how many changes were in a batch that was run.
type RanBatch struct {
	Ran int64 `json:"ran"`
}

// DroppedBatch is how many changes were in a batch that was dropped.
type DroppedBatch struct {
	Dropped int64 `json:"dropped"`
}

func (a *API) batchPaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/batches":            {"GET": showing(a, batches)},
		"/admin/v1/batches/{name}":     {"DELETE": {do: a.dropBatch, guarded: true}},
		"/admin/v1/batches/{name}/run": {"POST": {do: a.runBatch, guarded: true}},
	}
}

func batches(ctx context.Context, n *node.Node) (Batches, error) {
	all, err := n.Batches(ctx)
	return Batches{all}, err
}

func (a *API) runBatch(w http.ResponseWriter, r *http.Request) error {
	name, n, err := a.batch(r)
	if err != nil {
		return err
	}
	ran, err := n.RunBatch(r.Context(), name)
	if ran > 0 {
		a.log.Info("admin: a batch was run", slog.String("batch", name), slog.Int64("changes", ran), slog.String("by", a.who(r)))
	}
	switch {
	case err != nil:
		return steered(err)
	case ran == 0:
		return errNoBatch()
	}
	return send(w, http.StatusOK, RanBatch{ran})
}

func (a *API) dropBatch(w http.ResponseWriter, r *http.Request) error {
	name, n, err := a.batch(r)
	if err != nil {
		return err
	}
	dropped, err := n.DropBatch(r.Context(), name)
	switch {
	case err != nil:
		return steered(err)
	case dropped == 0:
		return errNoBatch()
	}
	a.log.Info("admin: a batch was dropped", slog.String("batch", name), slog.Int64("changes", dropped), slog.String("by", a.who(r)))
	return send(w, http.StatusOK, DroppedBatch{dropped})
}

func errNoBatch() error {
	return notFound("There is no batch of that name with anything in it: /admin/v1/batches lists them.")
}

// batch reads a request about a batch.
func (a *API) batch(r *http.Request) (name string, n *node.Node, err error) {
	name = r.PathValue("name")
	if err := checkText("name", name, 1, maxBatch); err != nil {
		return "", nil, err
	}
	n, err = a.bare(r)
	return name, n, err
}

// Batches lists the batches that have something in them, by name.
func (c Client) Batches(ctx context.Context) ([]node.BatchStats, error) {
	batches, err := call[Batches](ctx, c, http.MethodGet, "/admin/v1/batches", nil, nil)
	return batches.Batches, err
}

// RunBatch has what is in the batch count as changed, and returns how many changes that were.
func (c Client) RunBatch(ctx context.Context, name string) (int64, error) {
	if name == "" {
		return 0, errNameless
	}
	ran, err := call[RanBatch](ctx, c, http.MethodPost, "/admin/v1/batches/"+segment(name)+"/run", nil, nil)
	return ran.Ran, err
}

// DropBatch drops what is in the batch, and returns how many changes that were.
func (c Client) DropBatch(ctx context.Context, name string) (int64, error) {
	if name == "" {
		return 0, errNameless
	}
	dropped, err := call[DroppedBatch](ctx, c, http.MethodDelete, "/admin/v1/batches/"+segment(name), nil, nil)
	return dropped.Dropped, err
}

// errNameless: without a name the path would be another.
var errNameless = errors.New("admin: the name of the batch is empty; want 1 to 200 characters")
