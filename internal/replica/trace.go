package replica

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Trace says where the spans of requests and of the node go (docs/traces.md). The zero Trace makes none.
type Trace struct {
	// Endpoint is the URL of a receiver of OTLP over HTTP, such as http://127.0.0.1:4318; without a path it is
	// /v1/traces. "" = no spans. The exporter also reads OTEL_EXPORTER_OTLP_HEADERS and _CERTIFICATE.
	Endpoint string
	// Sample is the part of the requests that are recorded, above 0 up to 1; 0 = all. A request that comes in a trace
	// is recorded if the trace is.
	Sample float64
}

const (
	traceTimeout  = 5 * time.Second // for one batch
	traceRetries  = 10 * time.Second
	traceShutdown = 2 * time.Second // for what has not been sent at the end
)

// target is the URL that spans are sent to.
func (t Trace) target() (string, error) {
	u, err := url.Parse(t.Endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", fmt.Errorf("not a URL; want http://host:4318 or https://host:4318")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// tracer sends spans in batches, in the background, from a queue of 2,048; what finds no room is dropped.
type tracer struct {
	*sdktrace.TracerProvider
	log *slog.Logger
}

// startTracer connects to nobody yet.
func startTracer(ctx context.Context, t Trace, app, id string, log *slog.Logger) (*tracer, error) {
	target, err := t.target()
	if err != nil {
		return nil, fmt.Errorf("replica: Trace.Endpoint: %w", err)
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(target), otlptracehttp.WithTimeout(traceTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: traceTimeout, MaxElapsedTime: traceRetries,
		}))
	if err != nil {
		return nil, fmt.Errorf("replica: Trace: %w", err)
	}
	sampler := sdktrace.AlwaysSample()
	if t.Sample > 0 {
		sampler = sdktrace.TraceIDRatioBased(t.Sample)
	}
	return &tracer{sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(sampler)),
		sdktrace.WithBatcher(&tellingExporter{SpanExporter: exporter, log: log}),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", app), attribute.String("service.instance.id", id))),
	), log}, nil
}

// stop sends what is left, for a bounded time.
func (t *tracer) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, traceShutdown)
	defer cancel()
	if err := t.Shutdown(ctx); err != nil {
		t.log.Warn("the last spans were not sent", "error", err)
	}
}

// tellingExporter logs when sending begins to fail, and when it works again.
type tellingExporter struct {
	sdktrace.SpanExporter
	log     *slog.Logger
	failing atomic.Bool
}

// ExportSpans implements [sdktrace.SpanExporter].
func (e *tellingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if failed := err != nil; failed != e.failing.Swap(failed) {
		if failed {
			e.log.Warn("spans cannot be sent; they are dropped", "error", err)
		} else {
			e.log.Info("spans can be sent again")
		}
	}
	return nil // the SDK would print it
}
