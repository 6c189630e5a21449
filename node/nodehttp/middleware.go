package nodehttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Config says what the middleware does. The zero value carries tokens in Freshet-Token, and sets the headers.
type Config struct {
	// Registry gets the metrics of requests (docs/metrics.md); nil = there are none.
	Registry prometheus.Registerer
	// Tracer makes a server span for each request; nil = none.
	Tracer trace.TracerProvider
	// Budget lets a request choose how fresh its answer is, by Freshet-Budget. Whoever may send requests can then ask
	// for 0, which costs a poll of Postgres, though one poll serves all that wait for it.
	Budget bool
	// Cookie names a cookie that carries the session's token, for browsers, beside Freshet-Token; "" = none. It is
	// HttpOnly and SameSite=Lax, for all paths, until the browser closes, and Secure over TLS.
	Cookie string
}

// Middleware measures requests and labels answers. It is safe for concurrent use.
type Middleware struct {
	config   Config
	tracer   trace.Tracer             // nil = no spans
	duration *prometheus.HistogramVec // nil = no metrics
	inFlight prometheus.Gauge
}

// New makes a middleware. A registry takes one.
func New(c Config) (*Middleware, error) {
	m := &Middleware{config: c}
	if c.Cookie != "" {
		if err := (&http.Cookie{Name: c.Cookie}).Valid(); err != nil {
			return nil, fmt.Errorf("nodehttp: Config.Cookie: %w; want the name of a cookie, such as freshet", err)
		}
	}
	if c.Tracer != nil {
		m.tracer = c.Tracer.Tracer("github.com/freshet-cache/freshet/node/nodehttp")
	}
	if c.Registry != nil {
		m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "freshet_http_request_duration_seconds", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
			Help: "Requests by the pattern of their route, the class of their status, and what the caches did for them.",
		}, []string{"route", "method", "code", "cache"})
		m.inFlight = prometheus.NewGauge(prometheus.GaugeOpts{Name: "freshet_http_requests_in_flight", Help: "Requests under way."})
		if err := errors.Join(c.Registry.Register(m.duration), c.Registry.Register(m.inFlight)); err != nil {
			return nil, fmt.Errorf("nodehttp: register metrics: %w", err)
		}
	}
	return m, nil
}

// Handler is next with the middleware around it. What it knows of routes it has from [http.Request].Pattern: next is
// an [http.ServeMux], or is called by one.
func (m *Middleware) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(next, w, r) })
}

func (m *Middleware) serve(next http.Handler, inner http.ResponseWriter, r *http.Request) {
	began := time.Now()
	w := &writer{inner: inner, record: record{config: &m.config, secure: r.TLS != nil}}
	ctx := context.WithValue(r.Context(), recordKey{}, &w.record)
	method := methodOf(r.Method)
	var span trace.Span
	if m.tracer != nil {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(r.Header))
		ctx, span = m.tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.String("http.request.method", method)))
	}
	if m.inFlight != nil {
		m.inFlight.Inc()
	}
	r = r.WithContext(ctx)
	returned := false
	defer func() { // also when the handler panics, which is for others to answer
		if returned && w.status == 0 {
			w.begin(http.StatusOK)
		}
		status := w.status
		if status == 0 {
			status = http.StatusInternalServerError
		}
		m.end(method, routeOf(r.Pattern), status, w.result(), time.Since(began), span)
	}()
	next.ServeHTTP(w, r)
	returned = true
}

// end counts the request and ends its span.
func (m *Middleware) end(method, route string, status int, result string, took time.Duration, span trace.Span) {
	if m.inFlight != nil {
		m.inFlight.Dec()
		m.duration.WithLabelValues(route, method, classOf(status), result).Observe(took.Seconds())
	}
	if span == nil {
		return
	}
	if span.IsRecording() {
		span.SetName(method + " " + route)
		span.SetAttributes(attribute.String("http.route", route), attribute.Int("http.response.status_code", status), attribute.String("freshet.cache", result))
		if status >= http.StatusInternalServerError {
			span.SetAttributes(attribute.String("error.type", strconv.Itoa(status)))
			span.SetStatus(codes.Error, "")
		}
	}
	span.End()
}

// routeOf is a pattern without its method; that of no route is "none".
func routeOf(pattern string) string {
	if _, path, ok := strings.Cut(pattern, " "); ok {
		pattern = strings.TrimLeft(path, " \t")
	}
	if pattern == "" {
		return "none"
	}
	return pattern
}

// methodOf is the method, of which there are few: whatever a client makes up is "_OTHER".
func methodOf(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
		http.MethodConnect, http.MethodTrace:
		return method
	}
	return "_OTHER"
}

// classOf is the class of a status, such as 2xx.
func classOf(status int) string {
	if status < 100 || status > 599 {
		return "other"
	}
	return strconv.Itoa(status/100) + "xx"
}

// writer adds the headers of what was noted when the answer begins.
type writer struct {
	record
	inner  http.ResponseWriter
	status int // 0 = the answer has not begun
}

// begin notes the status and adds the headers.
func (w *writer) begin(status int) {
	w.status = status
	w.setHeaders(w.inner.Header())
}

// Header implements [http.ResponseWriter].
func (w *writer) Header() http.Header { return w.inner.Header() }

// WriteHeader implements [http.ResponseWriter].
func (w *writer) WriteHeader(status int) {
	if w.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) { // else more will come
		w.begin(status)
	}
	w.inner.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.begin(http.StatusOK)
	}
	return w.inner.Write(b)
}

// Unwrap is for [http.ResponseController].
func (w *writer) Unwrap() http.ResponseWriter { return w.inner }

// Flush implements [http.Flusher].
func (w *writer) Flush() {
	if w.status == 0 {
		w.begin(http.StatusOK)
	}
	_ = http.NewResponseController(w.inner).Flush() // as with a writer that cannot
}

// Hijack implements [http.Hijacker].
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.inner).Hijack()
	if err == nil {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, buffered, err
}
