package admin_test

import (
	"net/http"
	"strings"
	"testing"
)

func TestRow23Statistics(t *testing.T) {
	s := newSite(t)
	a, b := s.pair(nil)
	for _, r := range []*replica{a, b} {
		for _, id := range []string{"thing-1", "thing-1", "thing-2", "thing-none"} {
			_, _ = r.things.Get(t.Context(), id)
		}
	}
	one, err := a.client.Summary(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	all, err := b.client.Summary(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if v := one.Sum.Namespaces; len(v) != 1 || v[0].Reads != 4 || v[0].Loads != 3 || v[0].L1Hits != 1 {
		t.Errorf("one replica's summary: %+v", v)
	}
	if v := all.Sum.Namespaces; len(all.Replicas) != 2 || all.Sum.Replicas != 2 || len(v) != 1 || v[0].Reads != 8 || v[0].Hits+v[0].Misses != 8 || v[0].Loads != 3 {
		t.Errorf("the summary of both: %+v", all)
	}
	if before, err := a.client.ResetSummary(t.Context(), true); err != nil || before.Sum.Namespaces[0].Reads != 8 {
		t.Errorf("reset: %+v, %v", before, err)
	}
	if _, err := b.things.Get(t.Context(), "thing-1"); err != nil {
		t.Fatal(err)
	}
	after, err := a.client.Summary(t.Context(), true)
	if v := after.Sum.Namespaces; err != nil || len(v) != 1 || v[0].Reads != 1 || v[0].HitRatio != 1 || v[0].Loads != 0 {
		t.Errorf("after the reset: %+v, %v", after, err)
	}
	stats, err := a.client.StatsOfAll(t.Context())
	if err != nil || len(stats) != 2 || stats[1].Answer == nil || stats[1].Answer.Namespaces[0].Reads != 5 {
		t.Errorf("stats count on after a reset: %+v, %v", stats, err)
	}
	if got := a.do(http.MethodGet, "/metrics", ""); !strings.Contains(got.body, "freshet_reads_total") && !strings.Contains(got.body, "freshet_") {
		t.Errorf("/metrics: %d, %.200s", got.status, got.body)
	}
	if got := a.do(http.MethodPost, "/admin/v1/summary/reset?replicas=both", "", "Authorization", "Bearer "+token); got.status != 400 {
		t.Errorf("a wrong parameter: %+v", got)
	}
	if got := a.do(http.MethodPost, "/admin/v1/summary/reset", "{}", "Authorization", "Bearer "+token); got.status != 400 {
		t.Errorf("a body: %+v", got)
	}
	if again, err := a.client.Summary(t.Context(), true); err != nil || again.Sum.Namespaces[0].Reads != 1 {
		t.Errorf("refused requests have reset the window: %+v, %v", again, err)
	}
}
