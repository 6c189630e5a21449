package replay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/internal/check"
	"github.com/freshet-cache/freshet/internal/replay"
	"github.com/freshet-cache/freshet/internal/trace"
)

func run(t *testing.T, c replay.Config) replay.Report {
	t.Helper()
	d, err := replay.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An honest shop has no problem, and the report adds up.
func TestHonestShop(t *testing.T) {
	s := newShop(t)
	c := s.config(t)
	c.Missing = 0.05
	c.Lists = 0.1
	c.Budgets = []replay.Budget{{Within: 0, Weight: 1}, {Within: 50 * time.Millisecond, Weight: 1}, {Within: time.Second, Weight: 2}}
	r := run(t, c)
	if p := r.Problems(); len(p) != 0 {
		t.Fatalf("problems: %q", p)
	}
	if r.Scheduled != 600 || r.Replicas != 3 || r.Products != products || r.DurationS < 1.4 {
		t.Errorf("scheduled %d on %d replicas with %d products, %.1f s", r.Scheduled, r.Replicas, r.Products, r.DurationS)
	}
	if r.Reads != r.Fresh+r.Stale || r.Stale != 0 || r.Lists == 0 || r.Absent == 0 || r.Absent > r.Reads/5 {
		t.Errorf("reads %d: fresh %d, stale %d, lists %d, absent %d", r.Reads, r.Fresh, r.Stale, r.Lists, r.Absent)
	}
	if diff := int64(r.WritesHTTP) - int64(r.WritesSQL); r.WritesHTTP == 0 || r.Writes != r.WritesHTTP+r.WritesSQL || max(diff, -diff) > 1+int64(r.Dropped) {
		t.Errorf("writes %d: %d over HTTP, %d by SQL", r.Writes, r.WritesHTTP, r.WritesSQL)
	}
	// Each access is one read or write, and a write over HTTP brings two reads with it.
	if got := r.Reads + r.Writes + r.Dropped - 2*r.WritesHTTP; got != r.Scheduled {
		t.Errorf("%d accesses answered or dropped of %d", got, r.Scheduled)
	}
	if r.CountsFrom != "replicas" || r.SourceLoads < r.Reads-r.Lists || r.HitRatio != 0 {
		t.Errorf("counts from %s: %d source loads, hit ratio %v", r.CountsFrom, r.SourceLoads, r.HitRatio)
	}
	if n := r.ChangeLatencyMS.Count; n == 0 || n != r.ChangeLatencyHTTPMS.Count+r.ChangeLatencySQLMS.Count || uint64(n) != 3*r.Probes.Writes || r.Probes.Writes > 35 {
		t.Errorf("%d change latencies, %+v", n, r.Probes)
	}
	if r.Comparison.Written == 0 || r.Comparison.Answers != 3*uint64(r.Comparison.Written) || r.Comparison.Problem != "" {
		t.Errorf("comparison %+v", r.Comparison)
	}
	for name, n := range map[string]uint64{"http": r.Reads - r.Lists, "source": r.Reads - r.Lists, "list": r.Lists, "write_http": r.WritesHTTP, "write_sql": r.WritesSQL, "http_intended": r.Reads + r.WritesHTTP - 2*r.WritesHTTP} {
		if l := r.LatencyUS[name]; uint64(l.Count) != n || l.P50 == 0 || l.P50 > l.P99 || l.P99 > l.Max {
			t.Errorf("latency of %s: %+v, want %d of them", name, l, n)
		}
	}
	reads := map[string]any{}
	var text bytes.Buffer
	if err := errors.Join(r.WriteJSON(&text), json.Unmarshal(text.Bytes(), &reads)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"schema_version", "reads", "writes", "fresh", "stale", "errors", "violations", "hit_ratio", "hits_l1", "hits_l2", "owner_fills",
		"source_loads", "negative_hits", "staleness_ms", "change_latency_ms", "latency_us", "replicas", "duration_s", "dropped", "faults", "rate", "machine",
	} {
		if v, found := reads[name]; !found || v == nil {
			t.Errorf("the JSON has no %s", name)
		}
	}
}

// A shop that answers from a cache that only expires by time, and calls that fresh, is caught.
func TestLyingShop(t *testing.T) {
	s := newShop(t)
	s.cached = time.Hour
	c := s.config(t)
	c.Default = 100 * time.Millisecond // what the shop is believed to promise
	c.ProbeLimit = 200 * time.Millisecond
	r := run(t, c)
	for _, i := range []check.Invariant{check.I1, check.I2, check.I5} {
		if r.ViolationsBy[i] == 0 {
			t.Errorf("no violation of %s was found: %v", i, r.ViolationsBy)
		}
	}
	for _, i := range []check.Invariant{check.I4, check.Lost} {
		if r.ViolationsBy[i] != 0 {
			t.Errorf("it keeps %s, yet: %v", i, r.FirstViolations)
		}
	}
	if p := r.Problems(); len(p) != 2 || !strings.Contains(p[0], "broken promises") || !strings.Contains(p[1], "did not show a write in time") {
		t.Errorf("problems: %q", p)
	}
	if r.StalenessMS.Max < 100 || r.HitRatio == 0 || r.HitsL1 == 0 || len(r.FirstViolations) == 0 {
		t.Errorf("staleness %+v, hit ratio %v, l1 %d", r.StalenessMS, r.HitRatio, r.HitsL1)
	}
}

// A shop that acknowledges writes and forgets them is caught.
func TestForgetfulShop(t *testing.T) {
	s := newShop(t)
	s.forget = true
	c := s.config(t)
	c.Probes = -1
	r := run(t, c)
	if r.ViolationsBy[check.Lost] == 0 {
		t.Errorf("violations: %v", r.ViolationsBy)
	}
}

// Updates by somebody else during the run are noticed and excused.
func TestAnotherWriter(t *testing.T) {
	s := newShop(t)
	s.before = func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPatch {
			if _, err := s.db.ExecContext(req.Context(), "update products set price_cents = 7 where id = $1", 1+s.requests.Load()%products); err != nil {
				t.Error(err)
			}
		}
		return false
	}
	r := run(t, s.config(t))
	if p := r.Problems(); len(p) != 0 {
		t.Fatalf("problems: %q", p)
	}
	if r.WritesForeign == 0 || !strings.Contains(strings.Join(r.Warnings(), "\n"), "writers other than this run") {
		t.Errorf("%d foreign writes, warnings %q", r.WritesForeign, r.Warnings())
	}
}

// A shop that is too slow does not slow the load: accesses are dropped, and that is said.
func TestSlowShop(t *testing.T) {
	s := newShop(t)
	s.before = func(_ http.ResponseWriter, req *http.Request) bool {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-req.Context().Done():
		}
		return false
	}
	c := s.config(t)
	c.MaxInFlight, c.Writes, c.Duration = 4, 0, time.Second
	r := run(t, c)
	if p := r.Problems(); len(p) != 0 {
		t.Fatalf("problems: %q", p)
	}
	if r.Scheduled != 400 || r.Dropped < 300 || r.Dropped+r.Reads != r.Scheduled || r.DurationS > 2 {
		t.Errorf("scheduled %d, dropped %d, reads %d in %.1f s", r.Scheduled, r.Dropped, r.Reads, r.DurationS)
	}
	if w := strings.Join(r.Warnings(), "\n"); !strings.Contains(w, "fell behind") {
		t.Errorf("warnings: %q", w)
	}
}

// Failures are counted by kind; those of a fault are excused, others are a problem.
func TestFailures(t *testing.T) {
	tests := []struct {
		name, kind string
		before     func(http.ResponseWriter, *http.Request) bool
	}{
		{"status", "http_503", func(w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return true
		}},
		{"label", "unlabelled", func(w http.ResponseWriter, req *http.Request) bool {
			if req.Method == http.MethodGet {
				fmt.Fprint(w, `{"id":1,"revision":1}`)
			}
			return req.Method == http.MethodGet
		}},
		{"body", "unreadable", func(w http.ResponseWriter, req *http.Request) bool {
			w.Header().Set("Freshet-Fresh", "fresh")
			fmt.Fprint(w, `{"id":1,`)
			return true
		}},
		{"product", "wrong_product", func(w http.ResponseWriter, req *http.Request) bool {
			w.Header().Set("Freshet-Fresh", "fresh")
			fmt.Fprint(w, `{"id":1000000,"revision":1}`)
			return true
		}},
		{"connection", "broken", func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }},
		{"timeout", "timeout", func(_ http.ResponseWriter, req *http.Request) bool {
			// Only behind the body's end the server notices that the client has gone.
			if _, err := io.Copy(io.Discard, req.Body); err == nil {
				<-req.Context().Done()
			}
			return true
		}},
	}
	for _, test := range tests {
		for _, fault := range []bool{false, true} {
			name := test.name
			if fault {
				name += " during a fault"
			}
			t.Run(name, func(t *testing.T) {
				s := newShop(t)
				s.before = test.before
				c := s.config(t)
				c.Lists, c.Sweep, c.Probes, c.Rate, c.Duration, c.Timeout = -1, -1, -1, 100, 300*time.Millisecond, 50*time.Millisecond
				d, err := replay.New(c)
				if err != nil {
					t.Fatal(err)
				}
				if fault {
					d.Fault("test")
				}
				r, err := d.Run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if r.ErrorsByKind[test.kind] == 0 || r.Errors == 0 || r.Violations != 0 {
					t.Errorf("errors %v, violations %v", r.ErrorsByKind, r.FirstViolations)
				}
				p := strings.Join(r.Problems(), "\n")
				if strings.Contains(p, "failed without a fault") == fault || (r.ErrorsExcused == r.Errors) != fault {
					t.Errorf("%d of %d errors excused, problems %q", r.ErrorsExcused, r.Errors, p)
				}
				if fault && (len(r.Faults) != 1 || r.Faults[0].Name != "test" || r.Faults[0].HealedS != nil) {
					t.Errorf("faults: %+v", r.Faults)
				}
			})
		}
	}
}

// An interrupted run ends at once and says so.
func TestInterrupted(t *testing.T) {
	s := newShop(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.before = func(http.ResponseWriter, *http.Request) bool {
		if s.requests.Load() > 50 {
			cancel()
		}
		return false
	}
	c := s.config(t)
	c.Duration = time.Hour
	d, err := replay.New(c)
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Interrupted || r.Errors != 0 || len(r.Problems()) != 0 || len(r.Warnings()) == 0 {
		t.Errorf("interrupted %v, errors %v, problems %q, warnings %q", r.Interrupted, r.ErrorsByKind, r.Problems(), r.Warnings())
	}
	if p := d.Progress(); p.Reads == 0 || p.Reads != r.Reads {
		t.Errorf("progress %+v, report says %d reads", p, r.Reads)
	}
	if _, err := d.Run(t.Context()); err == nil {
		t.Error("a second Run was allowed")
	}
}

// A trace from a file drives the load, and its end ends the run.
func TestTraceFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.txt")
	if err := os.WriteFile(path, []byte(strings.Repeat("a\nb\na\nc\n", 25)), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := trace.Open(path, trace.Detect)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	s := newShop(t)
	c := s.config(t)
	c.Source, c.Duration, c.Writes, c.Lists = source, time.Hour, 0.2, -1
	r := run(t, c)
	if p := r.Problems(); len(p) != 0 || r.Scheduled != 100 || r.Comparison.Written > 3 {
		t.Errorf("problems %q, %d accesses, %d products written", p, r.Scheduled, r.Comparison.Written)
	}
	bad := errors.New("the disk is on fire")
	c.Source = failing{bad}
	d, err := replay.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Run(t.Context()); !errors.Is(err, bad) {
		t.Errorf("a failing source: %v", err)
	}
}

type failing struct{ error }

func (f failing) Next() (uint64, error) { return 0, f.error }

func TestConfigNamesEveryProblem(t *testing.T) {
	_, err := replay.New(replay.Config{
		Targets: []string{"localhost:80"}, Rate: -1, Writes: 2, Lists: 2, Missing: -1, MaxInFlight: -1, Default: -1, Timeout: -1,
		Budgets: []replay.Budget{{Within: -1, Weight: 0}}, Probes: 1e9, MaxProducts: -1,
	})
	if err == nil {
		t.Fatal("taken")
	}
	for _, field := range []string{"Targets[0]", "DB", "Source", "Rate", "Duration", "Writes", "Lists", "Missing", "MaxInFlight", "Default", "Timeout", "Budgets[0].Within", "Budgets[0].Weight", "Probes", "MaxProducts"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in %q", field, err)
		}
	}
}

func TestEmptyShop(t *testing.T) {
	s := newShop(t)
	if _, err := s.db.ExecContext(t.Context(), "truncate products"); err != nil {
		t.Fatal(err)
	}
	d, err := replay.New(s.config(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "seed the shop") {
		t.Fatalf("an empty shop: %v", err)
	}
}
