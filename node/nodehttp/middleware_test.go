package nodehttp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// entry is one from the tier.
func entry(tier node.Tier, change func(e *node.Entry[string])) node.Entry[string] {
	e := node.Entry[string]{Tier: tier, Fresh: true, Age: 1500 * time.Millisecond, TTL: time.Minute}
	if change != nil {
		change(&e)
	}
	return e
}

// serve answers one request by the handler behind a middleware.
func serve(t *testing.T, c nodehttp.Config, r *http.Request, handle http.HandlerFunc) *httptest.ResponseRecorder {
	t.Helper()
	m, err := nodehttp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	m.Handler(handle).ServeHTTP(w, r)
	return w
}

func request(t *testing.T, headers ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func TestHeaders(t *testing.T) {
	stale := func(e *node.Entry[string]) { e.Fresh = false }
	for name, c := range map[string]struct {
		entries          []node.Entry[string]
		status, tier, is string
	}{
		"nothing":       {nil, "", "", ""},
		"owner":         {[]node.Entry[string]{entry(node.TierOwner, nil)}, "freshet-owner; hit; ttl=60, freshet-l1; fwd=uri-miss; stored", "owner", "fresh"},
		"stale":         {[]node.Entry[string]{entry(node.TierL1, stale)}, "freshet-l1; hit; ttl=60; detail=stale", "l1", "stale"},
		"grace":         {[]node.Entry[string]{entry(node.TierL1, func(e *node.Entry[string]) { e.Fresh, e.Grace = false, 1 })}, "freshet-l1; hit; ttl=60; detail=grace", "l1", "stale"},
		"pending":       {[]node.Entry[string]{{Pending: true}}, "freshet-l1; hit; detail=pending", "", "stale"},
		"composed":      {[]node.Entry[string]{entry(0, nil)}, "", "", "fresh"},
		"several hits":  {[]node.Entry[string]{entry(node.TierL1, nil), entry(node.TierL2, func(e *node.Entry[string]) { e.TTL = time.Second })}, "freshet; hit; ttl=1", "", "fresh"},
		"several loads": {[]node.Entry[string]{entry(node.TierSource, nil), entry(node.TierSource, nil)}, "freshet; fwd=miss; ttl=60", "", "fresh"},
		"both":          {[]node.Entry[string]{entry(node.TierSource, nil), entry(node.TierL1, stale)}, "freshet; fwd=partial; ttl=60; detail=stale", "", "stale"},
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, nodehttp.Config{}, request(t), func(_ http.ResponseWriter, r *http.Request) {
				for _, e := range c.entries {
					nodehttp.Note(r.Context(), e)
				}
			}).Header()
			if h.Get("Cache-Status") != c.status || h.Get("Freshet-Tier") != c.tier || h.Get("Freshet-Fresh") != c.is {
				t.Errorf("got %v; want %q, %q, %q", h, c.status, c.tier, c.is)
			}
			if aged := h.Get("Age") == "1" && h.Get("Freshet-Staleness-Bound") == "1500"; aged != (c.is != "" && name != "pending") {
				t.Errorf("got %v", h)
			}
		})
	}
	h := serve(t, nodehttp.Config{}, request(t), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Status", "mine")
		nodehttp.Note(r.Context(), entry(node.TierL1, nil))
	}).Header()
	if h.Get("Cache-Status") != "mine" || h.Get("Age") != "1" {
		t.Errorf("a header of the handler's own: %v", h)
	}
	nodehttp.Note(t.Context(), entry(node.TierL1, nil)) // without a middleware nothing happens
	nodehttp.NoteToken(t.Context(), node.Token{})
}

// Handlers may read several things at once.
func TestNotesAtOnce(t *testing.T) {
	h := serve(t, nodehttp.Config{}, request(t), func(_ http.ResponseWriter, r *http.Request) {
		var work sync.WaitGroup
		for range 20 {
			work.Go(func() { nodehttp.Note(r.Context(), entry(node.TierL2, nil)) })
		}
		work.Wait()
	}).Header()
	if h.Get("Cache-Status") != "freshet; hit; ttl=60" {
		t.Errorf("got %v", h)
	}
}

func TestSessionOf(t *testing.T) {
	token, later := coherence.TokenOfWrite(1, 100).String(), coherence.TokenOfWrite(1, 200).String()
	both := coherence.TokenOfWrite(1, 100).Merge(coherence.TokenOfWrite(1, 200)).String()
	many := make([]string, 0, 34)
	for range 17 {
		many = append(many, nodehttp.TokenHeader, token)
	}
	for name, c := range map[string]struct {
		config  nodehttp.Config
		headers []string
		options int
		faults  []string
	}{
		"nothing":           {nodehttp.Config{Budget: true, Cookie: "s"}, nil, 0, nil},
		"token":             {nodehttp.Config{}, []string{nodehttp.TokenHeader, token}, 1, nil},
		"two tokens":        {nodehttp.Config{}, []string{nodehttp.TokenHeader, token, nodehttp.TokenHeader, later}, 1, nil},
		"too many tokens":   {nodehttp.Config{}, many, 0, []string{nodehttp.TokenHeader}},
		"no token":          {nodehttp.Config{}, []string{nodehttp.TokenHeader, "x"}, 0, []string{nodehttp.TokenHeader}},
		"cookie":            {nodehttp.Config{Cookie: "s"}, []string{"Cookie", "s=" + token}, 1, nil},
		"another's cookie":  {nodehttp.Config{Cookie: "s"}, []string{"Cookie", "t=" + token}, 0, nil},
		"bad cookie":        {nodehttp.Config{Cookie: "s"}, []string{"Cookie", "s=x"}, 0, nil},
		"budget":            {nodehttp.Config{Budget: true}, []string{nodehttp.BudgetHeader, "50ms"}, 1, nil},
		"budget not taken":  {nodehttp.Config{}, []string{nodehttp.BudgetHeader, "x"}, 0, nil},
		"two budgets":       {nodehttp.Config{Budget: true}, []string{nodehttp.BudgetHeader, "0", nodehttp.BudgetHeader, "0"}, 0, []string{nodehttp.BudgetHeader}},
		"all that is wrong": {nodehttp.Config{Budget: true}, []string{nodehttp.BudgetHeader, "-1s", nodehttp.TokenHeader, "x"}, 0, []string{nodehttp.TokenHeader, nodehttp.BudgetHeader}},
	} {
		t.Run(name, func(t *testing.T) {
			serve(t, c.config, request(t, c.headers...), func(_ http.ResponseWriter, r *http.Request) {
				s, err := nodehttp.SessionOf(r)
				var faults []string
				if wrong, ok := errors.AsType[*nodehttp.SessionError](err); ok {
					for _, f := range wrong.Faults {
						faults = append(faults, f.Header)
					}
				}
				if fmt.Sprint(faults) != fmt.Sprint(c.faults) || (err == nil) != (c.faults == nil) {
					t.Errorf("faults %v (%v), want %v", faults, err, c.faults)
				}
				if err == nil && len(s.Options()) != c.options {
					t.Errorf("%d options, want %d", len(s.Options()), c.options)
				}
				if name == "two tokens" && s.Token().String() != both {
					t.Errorf("the tokens are %s together, want %s", s.Token(), both)
				}
			})
		})
	}
	if s, err := nodehttp.SessionOf(request(t, nodehttp.TokenHeader, token, nodehttp.BudgetHeader, "0")); err != nil || len(s.Options()) != 1 {
		t.Errorf("without a middleware: %d options, %v", len(s.Options()), err)
	}
}

// What a handler panics with goes on to the server, and is counted.
func TestPanicGoesOn(t *testing.T) {
	registry, spans := prometheus.NewRegistry(), tracetest.NewInMemoryExporter()
	c := nodehttp.Config{Registry: registry, Tracer: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))}
	func() {
		defer func() {
			if cause := recover(); cause != "spilt milk" {
				t.Errorf("recovered %v", cause)
			}
		}()
		serve(t, c, request(t), func(http.ResponseWriter, *http.Request) { panic("spilt milk") })
	}()
	m := metrics(t, registry)
	if m["freshet_http_request_duration_seconds{cache=none,code=5xx,method=GET,route=none}"] != 1 || m["freshet_http_requests_in_flight{}"] != 0 {
		t.Errorf("metrics are %v", m)
	}
	if all := spans.GetSpans(); len(all) != 1 || value(all[0], "error.type") != "500" {
		t.Errorf("spans are %v", all)
	}
	if _, err := nodehttp.New(c); err == nil || !strings.Contains(err.Error(), "register") {
		t.Errorf("a second middleware on the registry: %v", err)
	}
	if _, err := nodehttp.New(nodehttp.Config{Cookie: "a b"}); err == nil || !strings.Contains(err.Error(), "Config.Cookie") {
		t.Errorf("a cookie that cannot be: %v", err)
	}
}

// What a writer of an HTTP server can do, the middleware's can: early hints, flushes, and another protocol.
func TestWriterCanAll(t *testing.T) {
	m, err := nodehttp.New(nodehttp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/flush", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		nodehttp.Note(r.Context(), entry(node.TierL1, nil))
		w.(http.Flusher).Flush()
		<-gate
		_, _ = io.WriteString(w, "late")
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
		_ = buffered.Flush()
	})
	server := httptest.NewServer(m.Handler(mux))
	defer server.Close()
	hints := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints++; return nil }})
	get := func(ctx context.Context, path string) *http.Response {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := get(ctx, "/flush") // which returns before the handler does
	if hints != 1 || resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Status") == "" {
		t.Errorf("%d early hints, then %d with %v", hints, resp.StatusCode, resp.Header)
	}
	close(gate)
	if body, err := bufio.NewReader(resp.Body).ReadString(0); body != "late" || !errors.Is(err, io.EOF) {
		t.Errorf("read %q, %v", body, err)
	}
	_ = resp.Body.Close()
	resp = get(t.Context(), "/hijack")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("got %d", resp.StatusCode)
	}
	_ = resp.Body.Close()
}

func TestETags(t *testing.T) {
	tag := nodehttp.ETag(0xabc)
	if tag != `"0000000000000abc"` {
		t.Errorf("the tag is %s", tag)
	}
	for value, want := range map[string]struct{ strong, weak bool }{
		tag: {true, true}, "W/" + tag: {false, true}, "*": {true, true}, `"a", ` + tag: {true, true}, `"a"`: {}, "": {}, tag + "x": {}, `"open`: {},
	} {
		list, ok := nodehttp.ParseETags([]string{value})
		if strong := ok && list.MatchStrongly(tag); strong != want.strong {
			t.Errorf("%s matches %t strongly", value, strong)
		}
		if weak := nodehttp.NotModified(request(t, "If-None-Match", value), tag); weak != want.weak {
			t.Errorf("%s matches %t weakly", value, weak)
		}
	}
}

// I7: with metrics, spans of everything and a caller whose span is recorded, a hit in L1 allocates nothing.
func TestI7TelemetryCostsAHitNothing(t *testing.T) {
	s := newSite(t)
	id := thing(1)
	for name, sampler := range map[string]sdktrace.Sampler{"always": sdktrace.AlwaysSample(), "never": sdktrace.NeverSample()} {
		var exported *tracetest.InMemoryExporter
		r := s.open(1, func(c *node.Config, _ *node.CacheConfig[Thing]) {
			c.App += name
			exported = tracetest.NewInMemoryExporter()
			c.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSyncer(exported))
		})
		ctx, span := r.tracer.Tracer("test").Start(t.Context(), "test")
		s.get(ctx, r, id)
		if name == "always" {
			s.until("the spans of the miss have ended", func() bool { return len(exported.GetSpans()) == 7 })
		}
		before := len(exported.GetSpans())
		if n := testing.AllocsPerRun(10_000, func() { _, _ = r.things.Get(ctx, id) }); n != 0 {
			t.Errorf("%s: Get allocates %v times", name, n)
		}
		if n := testing.AllocsPerRun(10_000, func() { _, _ = r.things.Lookup(ctx, id) }); n != 0 {
			t.Errorf("%s: Lookup allocates %v times", name, n)
		}
		if n := len(exported.GetSpans()) - before; n != 0 {
			t.Errorf("%s: hits left %d spans", name, n)
		}
		span.End()
	}
}
