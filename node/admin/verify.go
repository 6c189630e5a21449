package admin

import (
	"context"
	"fmt"
	"net/http"

	"github.com/freshet-cache/freshet/node"
)

// Mismatches are the last that a replica has found.
type Mismatches struct {
	Mismatches []node.Mismatch `json:"mismatches"`
}

// sample asks for a comparison of entries with the source.
type sample struct {
	Entries int `json:"entries"`
}

func (a *API) verifyPaths() map[string]methods {
	return map[string]methods{
		"/admin/v1/verify": {"POST": {do: a.verify, guarded: true}},
		"/admin/v1/mismatches": {"GET": showing(a, func(_ context.Context, n *node.Node) (Mismatches, error) {
			return Mismatches{n.Mismatches()}, nil
		}).guard()},
	}
}

// verify answers with a report also when entries failed: it counts them.
func (a *API) verify(w http.ResponseWriter, r *http.Request) error {
	want, n, err := steering[sample](a, w, r)
	if err != nil {
		return err
	}
	if want.Entries < 1 || want.Entries > node.MaxVerify {
		return badRequest(fault{Pointer: "/entries", Detail: fmt.Sprintf("want 1 to %d", node.MaxVerify)})
	}
	report, err := n.VerifySample(r.Context(), want.Entries)
	if err != nil && report.Checked+report.Moved+report.Failed+report.Skipped+len(report.Mismatches) == 0 {
		return err
	}
	a.log.Info("admin: entries were compared with the source", "checked", report.Checked, "moved", report.Moved,
		"failed", report.Failed, "skipped", report.Skipped, "mismatches", len(report.Mismatches))
	return send(w, http.StatusOK, report)
}

// Verify compares so many entries of the replica's L1 with the source.
func (c Client) Verify(ctx context.Context, entries int) (node.VerifyReport, error) {
	return call[node.VerifyReport](ctx, c, http.MethodPost, "/admin/v1/verify", nil, sample{entries})
}

// Mismatches are the last that the replica has found, the newest first.
func (c Client) Mismatches(ctx context.Context) ([]node.Mismatch, error) {
	kept, err := call[Mismatches](ctx, c, http.MethodGet, "/admin/v1/mismatches", nil, nil)
	return kept.Mismatches, err
}
