package nodehttp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

// under runs the function under a span of the test's own, and returns the spans of its trace when as many as
// wanted have ended, the test's among them.
func (s *site) under(r *replica, spans int, f func(ctx context.Context)) tracetest.SpanStubs {
	s.t.Helper()
	ctx, span := r.tracer.Tracer("test").Start(s.t.Context(), "test")
	f(ctx)
	span.End()
	var own tracetest.SpanStubs
	s.until(fmt.Sprintf("%d spans have ended", spans), func() bool {
		own = own[:0]
		for _, other := range r.spans.GetSpans() {
			if other.SpanContext.TraceID() == span.SpanContext().TraceID() {
				own = append(own, other)
			}
		}
		return len(own) >= spans
	})
	return own
}

// tree is how spans stand under each other, in the order in which they began, one a line.
func tree(spans tracetest.SpanStubs) string {
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	var b strings.Builder
	var write func(parent trace.SpanID, depth int)
	write = func(parent trace.SpanID, depth int) {
		for _, s := range spans {
			if s.Parent.SpanID() == parent {
				fmt.Fprintf(&b, "%s%s %s\n", strings.Repeat("  ", depth), s.Name, s.SpanKind)
				write(s.SpanContext.SpanID(), depth+1)
			}
		}
	}
	write(trace.SpanID{}, 0)
	return b.String()
}

// value is that of a span's attribute; nil if it has none.
func value(s tracetest.SpanStub, key string) any {
	for _, a := range s.Attributes {
		if a.Key == attribute.Key(key) {
			return a.Value.AsInterface()
		}
	}
	return nil
}

// named is the first of the spans with the name.
func named(t *testing.T, spans tracetest.SpanStubs, name string) tracetest.SpanStub {
	t.Helper()
	for _, s := range spans {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no span %q in\n%s", name, tree(spans))
	return tracetest.SpanStub{}
}

// A miss, a hit in L2, a hit in L1, a read with a barrier and a put each leave the spans that docs/traces.md says.
func TestSpans(t *testing.T) {
	s := newSite(t)
	r := s.open(1, nil)
	read := func(options ...node.ReadOption) func(ctx context.Context) {
		return func(ctx context.Context) { s.get(ctx, r, thing(1), options...) }
	}
	miss := s.under(r, 8, read())
	if got, want := tree(miss), `test internal
  freshet.read internal
    GET client
    freshet.flight internal
      freshet.lease internal
        PIPELINE client
      SELECT client
      PIPELINE client
`; got != want {
		t.Errorf("a miss left\n%swant\n%s", got, want)
	}
	for _, want := range []struct {
		span, attribute string
		value           any
	}{
		{"freshet.read", "freshet.namespace", "thing"},
		{"freshet.read", "freshet.view", "detail"},
		{"freshet.read", "freshet.tier", "source"},
		{"freshet.read", "freshet.label", "fresh"},
		{"GET", "db.system.name", "redis"},
		{"GET", "db.operation.name", "GET"},
		{"GET", "server.address", "127.0.0.1"},
		{"GET", "error.type", nil},
		{"PIPELINE", "db.operation.name", "PIPELINE"},
		{"PIPELINE", "db.operation.batch.size", int64(2)},
		{"SELECT", "db.system.name", "postgresql"},
		{"SELECT", "db.operation.name", "SELECT"},
		{"SELECT", "db.query.text", nil},
		{"SELECT", "freshet.ids", int64(1)},
	} {
		if got := value(named(t, miss, want.span), want.attribute); got != want.value {
			t.Errorf("%s: %s is %v, want %v", want.span, want.attribute, got, want.value)
		}
	}
	if port := value(named(t, miss, "GET"), "server.port"); port == nil || port == int64(0) {
		t.Errorf("GET: server.port is %v", port)
	}

	if got := tree(s.under(r, 1, read())); got != "test internal\n" {
		t.Errorf("a hit in L1 left\n%s", got)
	}
	if got, want := tree(s.under(r, 3, read(node.Within(0)))), "test internal\n  freshet.read internal\n    freshet.barrier internal\n"; got != want {
		t.Errorf("a read Within(0) left\n%swant\n%s", got, want)
	}

	put := s.under(r, 8, func(ctx context.Context) {
		if _, err := r.things.Put(ctx, thing(1), Thing{ID: thing(1), Name: "another"}); err != nil {
			t.Fatal(err)
		}
	})
	if got, want := tree(put), "test internal\n  freshet.put internal\n    freshet.write internal\n      PIPELINE UNLINK client\n    freshet.read internal\n"; !strings.HasPrefix(got, want) {
		t.Errorf("a put left\n%swant it to begin\n%s", got, want)
	}

	other := s.open(2, nil)
	s.until("the fill of the put is in L2", func() bool {
		_, tier, err := other.things.TTL(t.Context(), thing(1))
		return err == nil && tier == node.TierL2
	})
	hit := s.under(other, 3, func(ctx context.Context) { s.get(ctx, other, thing(1)) })
	if got, want := tree(hit), "test internal\n  freshet.read internal\n    GET client\n"; got != want {
		t.Errorf("a hit in L2 left\n%swant\n%s", got, want)
	}
}

// Readers that wait for the same flight are linked to it, and so is one that does not wait; nothing is the child of
// a read that is over.
func TestSpansOfSharedFlights(t *testing.T) {
	s := newSite(t)
	began, gate := make(chan struct{}, 1), make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	r := s.open(1, func(_ *node.Config, cache *node.CacheConfig[Thing]) {
		cache.Source = node.Func(func(ctx context.Context, ids []string) (map[string]Thing, error) {
			select {
			case began <- struct{}{}:
			default:
			}
			select {
			case <-gate:
				return map[string]Thing{ids[0]: {ID: ids[0]}}, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		})
	})
	tracer := r.tracer.Tracer("test")
	var readers sync.WaitGroup
	var contexts [2]trace.SpanContext
	for i := range contexts {
		ctx, span := tracer.Start(t.Context(), "test")
		contexts[i] = span.SpanContext()
		readers.Go(func() {
			defer span.End()
			_, _ = r.things.Lookup(ctx, thing(1))
		})
		if i == 0 {
			<-began
		} else {
			s.until("the second reader has joined", func() bool { return r.Stats().Namespaces[0].Coalesced == 1 })
		}
	}
	open()
	readers.Wait()
	spans := func(name string, of trace.TraceID) (found tracetest.SpanStubs) {
		for _, span := range r.spans.GetSpans() {
			if span.Name == name && span.SpanContext.TraceID() == of {
				found = append(found, span)
			}
		}
		return found
	}
	s.until("the flight has ended", func() bool { return len(spans("freshet.flight", contexts[0].TraceID())) == 1 })
	flight := spans("freshet.flight", contexts[0].TraceID())[0]
	first, second := spans("freshet.read", contexts[0].TraceID()), spans("freshet.read", contexts[1].TraceID())
	if len(first) != 1 || len(second) != 1 || flight.Parent.SpanID() != first[0].SpanContext.SpanID() {
		t.Fatalf("%d and %d reads; the flight's parent is %v", len(first), len(second), flight.Parent.SpanID())
	}
	if n := len(first[0].Links); n != 0 {
		t.Errorf("the reader that began the flight has %d links", n)
	}
	if links := second[0].Links; len(links) != 1 || links[0].SpanContext.SpanID() != flight.SpanContext.SpanID() {
		t.Errorf("the reader that joined has the links %v; want the flight", links)
	}

	// A value in its grace is answered at once: its flight is in a trace of its own.
	r.spans.Reset()
	if _, err := r.things.Invalidate(t.Context(), []string{thing(1)}, node.WithGrace(time.Minute)); err != nil {
		t.Fatal(err)
	}
	ctx, span := tracer.Start(t.Context(), "test")
	if e := s.get(ctx, r, thing(1)); e.Grace <= 0 {
		t.Fatalf("the answer is not in its grace: %+v", e)
	}
	span.End()
	reads := spans("freshet.read", span.SpanContext().TraceID())
	var behind tracetest.SpanStub
	s.until("the flight behind it has ended", func() bool {
		for _, other := range r.spans.GetSpans() {
			if other.Name == "freshet.flight" {
				behind = other
			}
		}
		return behind.Name != ""
	})
	if len(reads) != 1 || value(reads[0], "freshet.label") != "grace" || behind.Parent.IsValid() ||
		len(behind.Links) != 1 || behind.Links[0].SpanContext.SpanID() != reads[0].SpanContext.SpanID() {
		t.Errorf("reads %v; the flight has the parent %v and the links %v", reads, behind.Parent.SpanID(), behind.Links)
	}
}

// Without Redis an entity's owner is asked, which a span says; what the owner does is in a trace there.
func TestSpansOfOwners(t *testing.T) {
	s := newSite(t)
	alone := func(c *node.Config, _ *node.CacheConfig[Thing]) { c.Redis.Addrs = nil }
	s.open(1, alone)
	r := s.open(2, alone)
	for n := 1; ; n++ {
		spans := s.under(r, 4, func(ctx context.Context) { s.get(ctx, r, thing(n)) }) // test, read, flight, and the owner's or the load's
		if strings.Contains(tree(spans), "SELECT") {
			if n == 100 {
				t.Fatal("100 things, and none is another replica's")
			}
			continue
		}
		if got, want := tree(spans), "test internal\n  freshet.read internal\n    freshet.flight internal\n      freshet.owner client\n"; got != want {
			t.Errorf("a question to an owner left\n%swant\n%s", got, want)
		}
		if tier := value(named(t, spans, "freshet.read"), "freshet.tier"); tier != "owner" {
			t.Errorf("the tier is %v", tier)
		}
		return
	}
}

// What fails says so by a class, in spans and in metrics, and by no text.
func TestSpansOfFailures(t *testing.T) {
	s := newSite(t)
	stack := stacktest.Stack()
	fails := errors.New("secret-text of a failure")
	r := s.open(1, func(c *node.Config, cache *node.CacheConfig[Thing]) {
		c.Redis.Timeout = 50 * time.Millisecond
		cache.Source = node.Func(func(context.Context, []string) (map[string]Thing, error) { return nil, fails })
	})
	defer func() {
		for _, redis := range stack.Redis.Nodes() {
			if err := redis.Resume(); err != nil {
				t.Error(err)
			}
		}
		if err := stack.Redis.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	for _, redis := range stack.Redis.Nodes() { // all, so that none takes another's place
		if err := redis.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	spans := s.under(r, 4, func(ctx context.Context) {
		if _, err := r.things.Lookup(ctx, thing(1)); !errors.Is(err, fails) {
			t.Fatalf("got %v", err)
		}
	})
	// The client gives the connection up with the first call on it that has no answer in time, which need not be this
	// one: then it is the connection that fails.
	if class := value(named(t, spans, "GET"), "error.type"); class != "timeout" && class != "connection" {
		t.Errorf("GET at a shard that hangs: error.type is %v", class)
	}
	for _, name := range []string{"freshet.read", "freshet.load"} {
		if class := value(named(t, spans, name), "error.type"); class != "other" {
			t.Errorf("%s: error.type is %v", name, class)
		}
	}
	for _, span := range spans {
		if text := fmt.Sprint(span); strings.Contains(text, "secret-text") {
			t.Errorf("%s tells the text of an error: %s", span.Name, text)
		}
	}
	m := metrics(t, r.registry)
	unanswered := 0.0
	for name, v := range m {
		if strings.HasPrefix(name, "freshet_l2_errors_total{class=timeout") || strings.HasPrefix(name, "freshet_l2_errors_total{class=connection") {
			unanswered += v
		}
	}
	if failed := m["freshet_source_errors_total{class=other,namespace=thing,view=detail}"]; failed != 1 || unanswered < 1 {
		t.Errorf("%v failed loads and %v failures of L2 are counted", failed, unanswered)
	}
}
