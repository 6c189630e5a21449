package nodehttp_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// Row 23, metrics: a running node's are named as Prometheus wants them, say what happened, and are as many after any
// number of ids and clients as before.
func TestRow23Metrics(t *testing.T) {
	s := newSite(t)

	r := s.open(1, func(_ *node.Config, c *node.CacheConfig[Thing]) {
		c.MaxStale = time.Minute
		c.WarmUp = node.WarmUp{Query: "select id from things order by id limit 3"}
	})
	if _, err := node.NewQueryCache(r.Node, node.QueryConfig[int64]{
		Namespace: "thing", View: "count",
		Query: func(cluster.Params) (string, []any, error) { return "select count(*) from things", nil, nil },
	}); err != nil {
		t.Fatal(err)
	}
	middleware, err := nodehttp.New(nodehttp.Config{Registry: r.registry})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /things/{id}", func(w http.ResponseWriter, req *http.Request) {
		e, err := r.things.Lookup(req.Context(), req.PathValue("id"))
		nodehttp.Note(req.Context(), e)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
		}
	})
	api := middleware.Handler(mux)
	request := func(method, path string) {
		api.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), method, path, nil))
	}
	hammer := func(clients int) {
		var work sync.WaitGroup
		for range clients {
			work.Go(func() {
				random := rand.New(rand.NewPCG(1, rand.Uint64()))
				for range 50 {
					request("GET", fmt.Sprintf("/things/nothing-%d", random.Uint64()))
					request(fmt.Sprintf("M%d", random.Uint64()), fmt.Sprintf("/unknown/%d", random.Uint64()))
					request("GET", "/things/"+thing(1+random.IntN(5)))
				}
			})
		}
		work.Wait()
	}
	hammer(1)
	request("GET", "/things/"+thing(1))
	request("GET", "/things/nothing")
	series := slices.Sorted(maps.Keys(metrics(t, r.registry)))
	hammer(8)
	if now := slices.Sorted(maps.Keys(metrics(t, r.registry))); !slices.Equal(now, series) {
		added := slices.DeleteFunc(now, func(name string) bool { return slices.Contains(series, name) })
		t.Errorf("%d new series came with ids and clients: %.500v", len(added), added)
	}
	for _, name := range series {
		if strings.Contains(name, "nothing") || strings.Contains(name, "unknown/") || strings.Contains(name, "=M") {
			t.Errorf("a series is named after what a client sent: %s", name)
		}
	}

	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	documented(t, families, r.Node.Collector())

	// A change that another service makes is known by a poll; one through this node is heard of by its own hint.
	before := metrics(t, r.registry)
	s.exec(`update things set name = 'changed' where id = $1`, thing(1))
	if _, err := r.things.Invalidate(t.Context(), []string{thing(2)}); err != nil {
		t.Fatal(err)
	}
	s.until("both changes are known and timed", func() bool {
		now := metrics(t, r.registry)
		return now["freshet_invalidation_lag_seconds{way=poll}"] > before["freshet_invalidation_lag_seconds{way=poll}"] &&
			now["freshet_invalidation_lag_seconds{way=hint}"] == before["freshet_invalidation_lag_seconds{way=hint}"]+1
	})

	// What was not a plain hit is timed by tier, and what was is not.
	before = metrics(t, r.registry)
	s.get(t.Context(), r, thing(1))
	s.get(t.Context(), r, thing(1))
	after := metrics(t, r.registry)
	for name, want := range map[string]float64{
		"freshet_read_duration_seconds{namespace=thing,tier=source,view=detail}": 1,
		"freshet_read_duration_seconds{namespace=thing,tier=l1,view=detail}":     0,
		"freshet_load_duration_seconds{namespace=thing,view=detail}":             1,
		"freshet_answers_total{namespace=thing,tier=l1,view=detail}":             1,
		"freshet_reads_total{label=fresh,namespace=thing,view=detail}":           2,
		"freshet_source_errors_total{class=other,namespace=thing,view=detail}":   0,
	} {
		if got := after[name] - before[name]; got != want {
			t.Errorf("%s grew by %v, want %v", name, got, want)
		}
	}
}

// documented fails the test for metrics that docs/metrics.md lacks, or has with another kind or other labels, or has
// too many.
func documented(t *testing.T, families []*dto.MetricFamily, collector prometheus.Collector) {
	t.Helper()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	type metric struct{ kind, labels string }
	docs := map[string]metric{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(freshet_[a-z0-9_]+)` \\| (\\w+) \\| ([^|]*) \\| [^|]+ \\|$").FindAllStringSubmatch(string(text), -1) {
		labels := strings.Fields(strings.NewReplacer("`", "", ",", " ").Replace(row[3]))
		slices.Sort(labels)
		docs[row[1]] = metric{row[2], strings.Join(labels, ",")}
	}
	exported := map[string]metric{}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		exported[f.GetName()] = metric{strings.ToLower(f.GetType().String()), strings.Join(labels, ",")}
	}
	for name, m := range exported {
		if docs[name] != m {
			t.Errorf("docs/metrics.md has %s as %+v; it is %+v", name, docs[name], m)
		}
	}
	// What exists only in some states, such as the drift of a watched table, is described all the same.
	descriptions := make(chan *prometheus.Desc, 1000)
	collector.Describe(descriptions)
	close(descriptions)
	var described strings.Builder
	for d := range descriptions {
		fmt.Fprintln(&described, d)
	}
	for name := range docs {
		if _, there := exported[name]; !there && !strings.Contains(described.String(), `"`+name+`"`) {
			t.Errorf("docs/metrics.md has %s, which a running node does not export", name)
		}
	}
	for _, found := range regexp.MustCompile(`fqName: "([a-z0-9_]+)"`).FindAllStringSubmatch(described.String(), -1) {
		if _, there := docs[found[1]]; !there {
			t.Errorf("docs/metrics.md lacks %s", found[1])
		}
	}
}

// A replica tells much of what it does, and never of whom: ids and values, of reads, writes, puts and of all kinds of
// failures, are in no line of its log, no metric and no span.
func TestNothingTellsOfIDs(t *testing.T) {
	const mark = "Zz9marked"
	s := newSite(t)
	s.exec(`alter table things add constraint short check (length(name) < 100)`)
	r := s.open(1, func(c *node.Config, cache *node.CacheConfig[Thing]) {
		cache.WriteBehind, c.WriteBehind = true, node.WriteBehind{MaxAttempts: 1, MinRetry: time.Millisecond, MaxRetry: 2 * time.Millisecond}
		cache.WarmUp = node.WarmUp{IDs: func(context.Context) ([]string, error) { return nil, errors.New("nothing is known of " + mark) }, Timeout: 100 * time.Millisecond}
	})
	ctx := t.Context()
	panics, err := node.NewCache(r.Node, node.CacheConfig[Unsayable]{
		Namespace: "panics", Source: node.Func(func(_ context.Context, ids []string) (map[string]Unsayable, error) {
			if strings.HasSuffix(ids[0], "panic") {
				panic("nothing is known of " + ids[0])
			}
			return map[string]Unsayable{ids[0]: Unsayable(ids[0])}, nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := node.NewCache(r.Node, node.CacheConfig[Thing]{
		Namespace: "number", Source: node.SQL[Thing](`select id, name from things where length(name) = any($1::int[])`),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.exec(`insert into things values ($1, $2)`, mark+"-1", mark+"-value")
	ctx, span := r.tracer.Tracer("test").Start(ctx, "test")
	s.get(ctx, r, mark+"-1")
	s.get(ctx, r, mark+"-1", node.Within(0))
	for what, err := range map[string]error{
		"put": func() error { _, err := r.things.Put(ctx, mark+"-2", Thing{ID: mark + "-2", Name: mark}); return err }(),
		"put later": func() error {
			_, err := r.things.PutLater(ctx, mark+"-3", Thing{ID: mark + "-3", Name: mark})
			return err
		}(),
		"delete": func() error { _, err := r.things.Delete(ctx, mark+"-4"); return err }(),
		"snapshot": func() error {
			_, err := r.Snapshot(ctx, func(s *node.Snapshot) error { _, err := r.things.In(s, mark+"-1"); return err })
			return err
		}(),
		"tag":    func() error { _, err := r.InvalidateTag(ctx, []string{mark + "-tag"}); return err }(),
		"unkept": func() error { _, err := panics.Get(ctx, mark+"-unkept"); return err }(),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	long := strings.Repeat(mark, 20)
	if _, err := r.things.PutLater(ctx, mark+"-dead", Thing{ID: mark + "-dead", Name: long}); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"none":     func() error { _, err := r.things.Get(ctx, mark+"-none"); return err }(),
		"bad id":   func() error { _, err := r.things.Get(ctx, mark+"\x00"); return err }(),
		"no value": func() error { _, err := numbers.Get(ctx, mark); return err }(),
		"refused": func() error {
			_, err := r.things.Put(ctx, mark+"-long", Thing{ID: mark + "-long", Name: long})
			return err
		}(),
		"panic": func() error { _, err := panics.Get(ctx, mark+"-panic"); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	span.End()
	s.until("the put that cannot be is a dead letter", func() bool {
		return metrics(t, r.registry)["freshet_puts_total{namespace=thing,result=dead,view=detail}"] == 1
	})
	s.until("the log tells of it, of the panic and of the value that cannot be kept", func() bool {
		text := r.log.String()
		return strings.Contains(text, "dead letter") && strings.Contains(text, "panicked") && strings.Contains(text, "cannot be kept")
	})
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, mark) {
			t.Errorf("the log tells of an id or a value: %s", line)
		}
	}
	for name := range metrics(t, r.registry) {
		if strings.Contains(name, mark) {
			t.Errorf("a metric tells of an id: %s", name)
		}
	}
	spans := r.spans.GetSpans()
	for i := range spans {
		if text := fmt.Sprintf("%+v", spans[i]); strings.Contains(text, mark) {
			t.Errorf("a span tells of an id or a value: %s", text)
		}
	}
	for _, name := range []string{
		"freshet.read", "freshet.barrier", "freshet.flight", "freshet.lease", "freshet.load", "SELECT", "GET", "freshet.write", "freshet.put",
		"freshet.delete", "freshet.snapshot", "send freshet puts", "freshet.flush",
	} {
		if !slices.ContainsFunc(spans, func(s tracetest.SpanStub) bool { return s.Name == name }) {
			t.Errorf("no span %s; want those of all that was done", name)
		}
	}
}

// Unsayable cannot be encoded.
type Unsayable string

// MarshalJSON fails.
func (u Unsayable) MarshalJSON() ([]byte, error) {
	return nil, fmt.Errorf("cannot encode %s", string(u))
}

// UnmarshalJSON makes of it a type of its own form.
func (u *Unsayable) UnmarshalJSON([]byte) error { return errors.ErrUnsupported }
