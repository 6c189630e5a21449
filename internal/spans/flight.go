package spans

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// Flight is what readers must know of the span of a flight, which they share; nil = it has none.
type Flight struct{ self, from trace.SpanContext }

// behindKey is under which a context says that nobody waits for what is begun with it.
type behindKey struct{}

// Behind is ctx for what is begun by a read that does not wait for it: its span is linked to the read's, and is no
// child.
func (t *Tracer) Behind(ctx context.Context) context.Context {
	if t == nil {
		return ctx
	}
	return context.WithValue(ctx, behindKey{}, true)
}

// Flight is a flight of so many ids. It lives in ctx, and was begun by a read in the context from: it is the child of
// that read's span, or linked to it.
func (t *Tracer) Flight(ctx, from context.Context, namespace, view string, ids int) (context.Context, Span, *Flight) {
	if t == nil {
		return ctx, Span{}, nil
	}
	f := &Flight{from: trace.SpanContextFromContext(from)}
	n, v := of(namespace, view)
	options := []trace.SpanStartOption{trace.WithAttributes(n, v, attribute.Int("freshet.ids", ids))}
	if from.Value(behindKey{}) == nil {
		ctx = trace.ContextWithSpan(ctx, trace.SpanFromContext(from))
	} else if f.from.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: f.from}))
	}
	ctx, s := t.inner.Start(ctx, "freshet.flight", options...)
	f.self = s.SpanContext()
	return ctx, Span{s}, f
}

// Joined links the span of a reader to the flight that it waited for, if that is not its own.
func (f *Flight) Joined(ctx context.Context) {
	if f == nil || !f.self.IsValid() {
		return
	}
	if s := trace.SpanFromContext(ctx); s.IsRecording() && s.SpanContext().SpanID() != f.from.SpanID() {
		s.AddLink(trace.Link{SpanContext: f.self})
	}
}
