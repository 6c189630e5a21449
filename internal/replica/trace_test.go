package replica_test

import (
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/internal/replica"
	"github.com/freshet-cache/freshet/node"
)

// receiver takes spans by OTLP over HTTP.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans map[string][]*otlp.Span // trace id -> its spans
	from  map[string]bool         // service.name of who sent
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{spans: map[string][]*otlp.Span{}, from: map[string]bool{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if err := r.take(req); err != nil || req.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", req.URL, err)
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) take(req *http.Request) error {
	body := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			return err
		}
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var m coltrace.ExportTraceServiceRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range m.ResourceSpans {
		for _, a := range resource.Resource.Attributes {
			if a.Key == "service.name" {
				r.from[a.Value.GetStringValue()] = true
			}
		}
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				r.spans[string(s.TraceId)] = append(r.spans[string(s.TraceId)], s)
			}
		}
	}
	return nil
}

// names are those of the spans of the first trace that has the span.
func (r *receiver) names(span string) (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, spans := range r.spans {
		all = all[:0]
		found := false
		for _, s := range spans {
			all = append(all, s.Name)
			found = found || s.Name == span
		}
		if found {
			return all
		}
	}
	return nil
}

// A replica sends the spans of its requests and of what they waited for, the last ones when it stops.
func TestSendsSpans(t *testing.T) {
	dsn, _ := database(t)
	stack := stacktest.Stack()
	collector := newReceiver(t)
	r := run(t, replica.Config{
		Node: node.Config{
			App: "traced", Postgres: node.PostgresConfig{DSN: dsn}, Redis: node.RedisConfig{Addrs: stack.Redis.Addrs()},
			NATS: node.NATSConfig{URLs: []string{stack.NATS.URL()}},
		},
		Trace: replica.Trace{Endpoint: collector.URL},
	})
	eventually(t, "the replica has started", func() bool { return r.probe("/startupz") == http.StatusOK })
	if code, _, body := r.mustGet(t, r.API()+"/products?limit=3&offset=7"); code != http.StatusOK {
		t.Fatalf("%d: %s", code, body)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	names := collector.names("GET /products")
	all := strings.Join(names, ", ")
	for _, want := range []string{"freshet.read", "freshet.flight", "SELECT", "GET"} {
		if !strings.Contains(all, want) {
			t.Errorf("the trace of the request has the spans %v; want %s among them", names, want)
		}
	}
	if !collector.from["traced"] {
		t.Errorf("spans came from %v", collector.from)
	}
}

// Without a receiver that answers, a replica serves and stops as ever.
func TestSpansThatNobodyTakes(t *testing.T) {
	dsn, _ := database(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := run(t, replica.Config{Node: node.Config{App: "untraced", Postgres: node.PostgresConfig{DSN: dsn}}, Trace: replica.Trace{Endpoint: "http://" + silent.Addr().String()}})
	eventually(t, "the replica has started", func() bool { return r.probe("/startupz") == http.StatusOK })
	if code, _, body := r.mustGet(t, r.API()+"/products/1"); code != http.StatusOK {
		t.Fatalf("%d: %s", code, body)
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
