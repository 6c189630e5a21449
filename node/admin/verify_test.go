package admin_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// A sample is taken on demand, and what it has found is shown, to who brings a credential only: there are ids in it.
func TestVerify(t *testing.T) {
	s := newSite(t)
	r := s.open("a", nil)
	for _, id := range []string{"thing-1", "thing-2", "thing-3"} {
		if _, err := r.things.Get(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := r.client.Verify(t.Context(), 10); err != nil || v.Checked != 3 || len(v.Mismatches) > 0 {
		t.Errorf("%+v, %v", v, err)
	}
	tx := s.db.MustBeginTx(t.Context(), nil)
	tx.MustExecContext(t.Context(), `update things set name = 'odd' where id = 'thing-2'`)
	tx.MustExecContext(t.Context(), `delete from freshet.log where xid = pg_current_xact_id()`)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	v, err := r.client.Verify(t.Context(), node.MaxVerify)
	if err != nil || v.Checked != 2 || len(v.Mismatches) != 1 || v.Mismatches[0].ID != "thing-2" {
		t.Errorf("%+v, %v", v, err)
	}
	if kept, err := r.client.Mismatches(t.Context()); err != nil || len(kept) != 1 || !kept[0].At.Equal(v.Mismatches[0].At) {
		t.Errorf("%+v, %v", kept, err)
	}
	refused := func(entries, status int) {
		t.Helper()
		_, err := r.client.Verify(t.Context(), entries)
		if p, ok := errors.AsType[*admin.ProblemError](err); !ok || p.Status != status {
			t.Errorf("%d entries: %v; want a problem of %d", entries, err, status)
		}
	}
	refused(0, http.StatusBadRequest)
	refused(node.MaxVerify+1, http.StatusBadRequest)
	for path, method := range map[string]string{"/admin/v1/verify": "POST", "/admin/v1/mismatches": "GET"} {
		if got := r.do(method, path, ""); got.status != http.StatusUnauthorized {
			t.Errorf("%s without a credential: %d", path, got.status)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	refused(1, http.StatusServiceUnavailable)
}
