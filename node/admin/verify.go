package admin

import (
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
		"/admin/v1/verify":     {"POST": {do: a.verify, guarded: true}},
		"/admin/v1/mismatches": {"GET": {do: a.mismatches, guarded: true}},
	}
}

// verify answers with a report also when entries failed: it counts them.
func (a *API) verify(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	want, err := read[sample](w, r)
	if err != nil {
		return err
	}
	if want.Entries < 1 || want.Entries > node.MaxVerify {
		return badRequest(fault{Pointer: "/entries", Detail: fmt.Sprintf("want 1 to %d", node.MaxVerify)})
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	report, err := n.VerifySample(r.Context(), want.Entries)
	if err != nil && report.Checked+report.Moved+report.Failed+report.Skipped+len(report.Mismatches) == 0 {
		return err
	}
	a.log.Info("admin: entries were compared with the source", "checked", report.Checked, "moved", report.Moved,
		"failed", report.Failed, "skipped", report.Skipped, "mismatches", len(report.Mismatches))
	return send(w, http.StatusOK, report)
}

func (a *API) mismatches(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	n, err := a.opened()
	if err != nil {
		return err
	}
	return send(w, http.StatusOK, Mismatches{n.Mismatches()})
}
