package spans

import (
	"context"
	"net"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Scope is the name of the instrumentation.
const Scope = "github.com/freshet-cache/freshet"

// Tracer makes spans; nil = none.
type Tracer struct{ inner trace.Tracer }

// New makes a tracer on the provider; nil for nil.
func New(p trace.TracerProvider) *Tracer {
	if p == nil {
		return nil
	}
	return &Tracer{p.Tracer(Scope)}
}

// start is called with a Tracer that is not nil.
func (t *Tracer) start(ctx context.Context, name string, kind trace.SpanKind, attributes ...attribute.KeyValue) (context.Context, Span) {
	ctx, s := t.inner.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attributes...))
	return ctx, Span{s}
}

func of(namespace, view string) (a, b attribute.KeyValue) {
	return attribute.String("freshet.namespace", namespace), attribute.String("freshet.view", view)
}

// Read is one read of so many ids that is no plain hit.
func (t *Tracer) Read(ctx context.Context, namespace, view string, ids int) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	n, v := of(namespace, view)
	return t.start(ctx, "freshet.read", trace.SpanKindInternal, n, v, attribute.Int("freshet.ids", ids))
}

// Snapshot is a read of several values as of one moment.
func (t *Tracer) Snapshot(ctx context.Context) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	return t.start(ctx, "freshet.snapshot", trace.SpanKindInternal)
}

// Barrier is the wait for a poll.
func (t *Tracer) Barrier(ctx context.Context) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	return t.start(ctx, "freshet.barrier", trace.SpanKindInternal)
}

// Lease is the wait until this replica may load, or another has loaded.
func (t *Tracer) Lease(ctx context.Context, ids int) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	return t.start(ctx, "freshet.lease", trace.SpanKindInternal, attribute.Int("freshet.ids", ids))
}

// Owner is the question to an entity's owner replica, over NATS.
func (t *Tracer) Owner(ctx context.Context, namespace, view string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	n, v := of(namespace, view)
	return t.start(ctx, "freshet.owner", trace.SpanKindClient, n, v, attribute.String("messaging.system", "nats"))
}

// Load is one load from a source: a query of the database at the address if it runs SQL, else a function.
func (t *Tracer) Load(ctx context.Context, namespace, view string, ids int, sql bool, address string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	n, v := of(namespace, view)
	if !sql {
		return t.start(ctx, "freshet.load", trace.SpanKindInternal, n, v, attribute.Int("freshet.ids", ids))
	}
	attributes := append(make([]attribute.KeyValue, 0, 8), n, v, attribute.Int("freshet.ids", ids),
		attribute.String("db.system.name", "postgresql"), attribute.String("db.operation.name", "SELECT"))
	return t.start(ctx, "SELECT", trace.SpanKindClient, server(attributes, address)...)
}

// Redis is one pipeline of so many commands to the shard at the address. command is the name of all of them, empty
// if they differ.
func (t *Tracer) Redis(ctx context.Context, command string, commands int, address string) Span {
	if t == nil {
		return Span{}
	}
	attributes := append(make([]attribute.KeyValue, 0, 8), attribute.String("db.system.name", "redis"))
	switch {
	case commands > 1 && command == "":
		command = "PIPELINE"
	case commands > 1:
		command = "PIPELINE " + command
	}
	if commands > 1 {
		attributes = append(attributes, attribute.Int("db.operation.batch.size", commands))
	}
	attributes = append(attributes, attribute.String("db.operation.name", command))
	_, s := t.start(ctx, command, trace.SpanKindClient, server(attributes, address)...)
	return s
}

// server adds the host and port of an address, as far as it has them.
func server(attributes []attribute.KeyValue, address string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if host != "" {
		attributes = append(attributes, attribute.String("server.address", host))
	}
	if n, err := strconv.Atoi(port); err == nil {
		attributes = append(attributes, attribute.Int("server.port", n))
	}
	return attributes
}

// Write is one transaction and what follows its commit.
func (t *Tracer) Write(ctx context.Context) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	return t.start(ctx, "freshet.write", trace.SpanKindInternal)
}

// Put is a write through a cache's Store of so many ids: operation is "put" or "delete".
func (t *Tracer) Put(ctx context.Context, operation, namespace, view string, ids int) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	n, v := of(namespace, view)
	return t.start(ctx, "freshet."+operation, trace.SpanKindInternal, n, v, attribute.Int("freshet.ids", ids))
}

// Send is a later put on its way into the stream.
func (t *Tracer) Send(ctx context.Context, namespace, view string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	n, v := of(namespace, view)
	return t.start(ctx, "send freshet puts", trace.SpanKindProducer, n, v,
		attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.type", "send"))
}

// Flush is a transaction that writes so many later puts.
func (t *Tracer) Flush(ctx context.Context, namespace, view string, ids int) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	n, v := of(namespace, view)
	return t.start(ctx, "freshet.flush", trace.SpanKindConsumer, n, v, attribute.Int("freshet.ids", ids),
		attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.type", "process"))
}

// Carry is life with the span of from, so that what is done for a reader is its span's child without ending with it.
func (t *Tracer) Carry(life, from context.Context) context.Context {
	if t == nil {
		return life
	}
	return trace.ContextWithSpan(life, trace.SpanFromContext(from))
}

// Span is one span under way; the zero Span is none, and its methods do nothing.
type Span struct{ inner trace.Span }

// Recording reports whether anybody will see what is said of the span.
func (s Span) Recording() bool { return s.inner != nil && s.inner.IsRecording() }

// Answer says which tier answered a read, and with which label.
func (s Span) Answer(tier, label string) {
	if s.Recording() {
		s.inner.SetAttributes(attribute.String("freshet.tier", tier), attribute.String("freshet.label", label))
	}
}

// Outcome says what came of it.
func (s Span) Outcome(outcome string) {
	if s.Recording() {
		s.inner.SetAttributes(attribute.String("freshet.outcome", outcome))
	}
}

// End ends the span, with the class of what went wrong, or none. Ending it again does nothing.
func (s Span) End(class string) {
	if s.inner == nil {
		return
	}
	if class != "" && s.inner.IsRecording() {
		s.inner.SetAttributes(attribute.String("error.type", class))
		s.inner.SetStatus(codes.Error, class)
	}
	s.inner.End()
}
