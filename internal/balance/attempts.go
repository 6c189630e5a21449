package balance

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// maxAttempts bounds the replicas that one request is sent to.
const maxAttempts = 4

// attempts is the transport under the proxy: it chooses the target, and sends what may be sent
// again to the next one when a target fails.
type attempts struct{ b *Balancer }

// RoundTrip implements [http.RoundTripper].
func (a attempts) RoundTrip(r *http.Request) (*http.Response, error) {
	var space [maxAttempts]*targetState
	tried := space[:0]
	err := errUnreachable
	for len(tried) < maxAttempts {
		t := a.b.pick(tried)
		if t == nil {
			break
		}
		if len(tried) > 0 {
			a.b.retries.Add(1)
		}
		tried = append(tried, t)
		resp, aerr := a.once(t, r)
		if aerr == nil {
			return resp, nil
		}
		if r.Context().Err() != nil {
			return nil, aerr
		}
		switch notSent := dialFailed(aerr); {
		case notSent:
			// Down until its next good check. err stays: it may be errUnreachable.
			t.ready.Store(false)
		case repeatable(r):
			err = aerr
		default:
			return nil, aerr
		}
	}
	return nil, err
}

// once sends the request to one target.
func (a attempts) once(t *targetState, r *http.Request) (*http.Response, error) {
	t.requests.Add(1)
	t.inFlight.Add(1)
	out := new(http.Request)
	*out = *r
	u := *r.URL
	u.Host = t.Address
	out.URL = &u
	if r.Body != nil {
		// The transport closes the body also when it never read it; the proxy's own close, at the
		// request's end, is the one that counts.
		out.Body = io.NopCloser(r.Body)
	}
	resp, err := a.b.transport.RoundTrip(out)
	if err != nil {
		t.errors.Add(1)
		t.inFlight.Add(-1)
		return nil, err
	}
	body := &answerBody{rest: resp.Body, target: t}
	if repeatable(r) {
		if err := body.hold(a.b.config.buffer(), &a.b.held); err != nil {
			t.errors.Add(1)
			body.Close() //nolint:errcheck // the read's error says it all
			return nil, err
		}
	}
	resp.Body = body
	return resp, nil
}

// repeatable reports whether the request can be sent twice without a difference.
func repeatable(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.Body == nil || r.Body == http.NoBody)
}

// dialFailed reports whether no byte of the request left, since no connection was made.
func dialFailed(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// answerBody is the body of a target's answer: what was held back, then the rest. Its request is in
// flight until it is closed.
type answerBody struct {
	held    *bytes.Buffer // nil = nothing held back
	buffers *sync.Pool    // where held goes at the end
	rest    io.ReadCloser
	target  *targetState
	closed  bool
}

// hold reads up to n bytes of the answer. Its error is that of the answer breaking off.
func (b *answerBody) hold(n int, buffers *sync.Pool) error {
	b.buffers = buffers
	if held, ok := buffers.Get().(*bytes.Buffer); ok {
		b.held = held
	} else {
		b.held = new(bytes.Buffer)
	}
	_, err := io.CopyN(b.held, b.rest, int64(n))
	if errors.Is(err, io.EOF) {
		return nil // all of it
	}
	return err
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.held != nil && b.held.Len() > 0 {
		return b.held.Read(p)
	}
	return b.rest.Read(p)
}

func (b *answerBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	b.target.inFlight.Add(-1)
	if b.held != nil {
		b.held.Reset()
		b.buffers.Put(b.held)
		b.held = nil
	}
	return b.rest.Close()
}

// copyBuffers lends the proxy its copy buffers.
type copyBuffers struct{ pool sync.Pool }

const copyBufferSize = 32 << 10

func (c *copyBuffers) Get() []byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, copyBufferSize)
}

func (c *copyBuffers) Put(b []byte) { c.pool.Put(&b) }

// drain reads a short body to its end, so that its connection can be used again.
func drain(r io.Reader) { io.CopyN(io.Discard, r, 64<<10) } //nolint:errcheck // only for the connection's sake
