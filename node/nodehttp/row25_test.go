package nodehttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// api serves things from the replica, as a user's own API would.
func (s *site) api(r *replica) *httptest.Server {
	s.t.Helper()
	middleware, err := nodehttp.New(nodehttp.Config{Registry: r.registry, Tracer: r.tracer, Budget: true, Cookie: "freshet"})
	if err != nil {
		s.t.Fatal(err)
	}
	answer := func(w http.ResponseWriter, v any, err error) {
		switch {
		case errors.Is(err, node.ErrNotFound):
			http.Error(w, "no such thing", http.StatusNotFound)
		case err != nil:
			http.Error(w, "not now", http.StatusServiceUnavailable)
		default:
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /things/{id}", func(w http.ResponseWriter, req *http.Request) {
		session, err := nodehttp.SessionOf(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e, err := r.things.Lookup(req.Context(), req.PathValue("id"), session.Options()...)
		nodehttp.Note(req.Context(), e)
		if err == nil && nodehttp.NotModified(req, nodehttp.ETag(e.Version)) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("ETag", nodehttp.ETag(e.Version))
		answer(w, e.Value, err)
	})
	mux.HandleFunc("PUT /things/{id}/{name}", func(w http.ResponseWriter, req *http.Request) {
		thing := Thing{ID: req.PathValue("id"), Name: req.PathValue("name")}
		token, err := r.Write(req.Context(), func(tx *node.Tx) error {
			_, err := tx.ExecContext(req.Context(), `update things set name = $2 where id = $1`, thing.ID, thing.Name)
			return err
		})
		if err == nil {
			nodehttp.NoteToken(req.Context(), token)
		}
		answer(w, thing, err)
	})
	server := httptest.NewServer(middleware.Handler(mux))
	s.t.Cleanup(server.Close)
	return server
}

// reply is what a request got.
type reply struct {
	status  int
	header  http.Header
	body    string
	cookies []*http.Cookie
}

// call sends a request.
func (s *site) call(client *http.Client, method, url string, headers ...string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Add(pair[0], pair[1])
	}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(body), resp.Cookies()}
}

// Row 25: the middleware of a user's own API says where each answer came from because it knows, whether Postgres is
// there or not; a client reads its own writes on whichever replica; metrics and traces tell of both.
func TestRow25Middleware(t *testing.T) {
	s := newSite(t)
	var replicas [2]*replica
	var urls [2]string
	for i := range replicas {
		replicas[i] = s.open(0, func(c *node.Config, cache *node.CacheConfig[Thing]) {
			c.NATS.URLs = nil // so that a replica learns of the other's writes by polls alone
			c.Budget = patient
			cache.MaxStale = time.Minute
		})
		urls[i] = s.api(replicas[i]).URL
	}
	plain := http.DefaultClient
	defer plain.CloseIdleConnections()

	// Where it came from.
	path := "/things/" + thing(1)
	for _, want := range []struct{ url, tier, status string }{
		{urls[0], "source", `freshet-l2; fwd=miss, freshet-l1; fwd=miss; stored; ttl=\d+`},
		{urls[0], "l1", `freshet-l1; hit; ttl=\d+`},
		{urls[1], "l2", `freshet-l2; hit; ttl=\d+, freshet-l1; fwd=uri-miss; stored`},
	} {
		if want.tier == "l2" {
			s.until("the fill is in L2", func() bool { return replicas[0].Stats().Namespaces[0].Fills > 0 })
		}
		resp := s.call(plain, "GET", want.url+path)
		h := resp.header
		if resp.status != http.StatusOK || !strings.Contains(resp.body, "name 1") || h.Get("Freshet-Tier") != want.tier ||
			!regexp.MustCompile("^"+want.status+"$").MatchString(h.Get("Cache-Status")) {
			t.Errorf("%d %s with %v; want tier %s, %s", resp.status, resp.body, h, want.tier, want.status)
		}
		if h.Get("Freshet-Fresh") != "fresh" || h.Get("Age") != "0" || h.Get("Freshet-Token") == "" || len(resp.cookies) != 1 {
			t.Errorf("labels of an answer from %s: %v", want.tier, h)
		}
		if again := s.call(plain, "GET", want.url+path, "If-None-Match", h.Get("ETag")); again.status != http.StatusNotModified || again.header.Get("Cache-Status") == "" {
			t.Errorf("with If-None-Match: %d, %v", again.status, again.header)
		}
	}
	if resp := s.call(plain, "GET", urls[0]+"/things/none"); resp.status != http.StatusNotFound || resp.header.Get("Freshet-Fresh") != "fresh" {
		t.Errorf("of what is not there: %d, %v", resp.status, resp.header)
	}
	for _, header := range []string{nodehttp.TokenHeader, nodehttp.BudgetHeader} {
		resp := s.call(plain, "GET", urls[0]+path, header, "nonsense")
		if resp.status != http.StatusBadRequest || !strings.Contains(resp.body, header) || resp.header.Get("Cache-Status") != "" {
			t.Errorf("with a bad %s: %d %s, %v", header, resp.status, resp.body, resp.header)
		}
	}

	// A session goes from replica to replica, by its header, and by its cookie.
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Transport: plain.Transport, Jar: jar}
	for round := range 6 {
		name := fmt.Sprintf("round-%d", round)
		client, headers := plain, []string(nil)
		if round%2 == 1 {
			client = browser
		}
		s.call(client, "GET", urls[(round+1)%2]+path) // so that it is in L1 there, as it was
		resp := s.call(client, "PUT", urls[round%2]+path+"/"+name)
		if client == plain {
			headers = []string{nodehttp.TokenHeader, resp.header.Get(nodehttp.TokenHeader)}
		}
		if resp := s.call(client, "GET", urls[(round+1)%2]+path, headers...); !strings.Contains(resp.body, name) {
			t.Errorf("round %d: the session wrote %s and reads %s, %v", round, name, resp.body, resp.header)
		}
	}

	// A request goes on with its caller's trace, and the node's spans are in it.
	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	s.call(plain, "GET", urls[0]+"/things/"+thing(2), "Traceparent", "00-"+trace+"-"+caller+"-01")
	var own tracetest.SpanStubs
	s.until("the spans of the request have ended", func() bool {
		own = own[:0]
		for _, span := range replicas[0].spans.GetSpans() {
			if span.SpanContext.TraceID().String() == trace {
				own = append(own, span)
			}
		}
		return len(own) >= 8
	})
	server, read := named(t, own, "GET /things/{id}"), named(t, own, "freshet.read")
	if server.Parent.SpanID().String() != caller || read.Parent.SpanID() != server.SpanContext.SpanID() ||
		value(server, "http.route") != "/things/{id}" || value(server, "http.response.status_code") != int64(200) || value(server, "freshet.cache") != "source" {
		t.Errorf("the span of the request is %+v", server)
	}

	// Without Postgres.
	postgres := stacktest.Stack().Postgres
	replicas[0].broken, replicas[1].broken = true, true
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := postgres.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	s.until("answers are STALE, and say so", func() bool {
		resp := s.call(plain, "GET", urls[0]+path, nodehttp.BudgetHeader, "0")
		h := resp.header
		return h.Get("Freshet-Fresh") == "stale" && strings.HasSuffix(h.Get("Cache-Status"), "; detail=stale") && h.Get("Age") != "" && resp.status == http.StatusOK
	})
	m := metrics(t, replicas[0].registry)
	for name, least := range map[string]float64{
		"freshet_http_request_duration_seconds{cache=source,code=2xx,method=GET,route=/things/{id}}":      2,
		"freshet_http_request_duration_seconds{cache=l1,code=2xx,method=GET,route=/things/{id}}":          1,
		"freshet_http_request_duration_seconds{cache=l1,code=3xx,method=GET,route=/things/{id}}":          2,
		"freshet_http_request_duration_seconds{cache=stale,code=2xx,method=GET,route=/things/{id}}":       1,
		"freshet_http_request_duration_seconds{cache=none,code=4xx,method=GET,route=/things/{id}}":        2,
		"freshet_http_request_duration_seconds{cache=none,code=2xx,method=PUT,route=/things/{id}/{name}}": 3,
		"freshet_stale_answers_total{namespace=thing,reason=unproven,view=detail}":                        1,
	} {
		if m[name] < least {
			t.Errorf("%s is %v, want %v at least", name, m[name], least)
		}
	}
}
