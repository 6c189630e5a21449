package shop

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/node"
)

// problem is an error answer in the form of RFC 9457.
type problem struct {
	Type   string  `json:"type"`
	Title  string  `json:"title"`
	Status int     `json:"status"`
	Detail string  `json:"detail,omitempty"`
	Errors []fault `json:"errors,omitempty"` // all that is wrong with the request, in its order

	header http.Header // added to the answer
	cause  error       // for the log, when it is the service's fault
}

// fault is one thing that is wrong with a request. Parameter, Header or Pointer names the part, if it is one part.
type fault struct {
	Parameter string `json:"parameter,omitempty"` // of the path or the query
	Header    string `json:"header,omitempty"`
	Pointer   string `json:"pointer,omitempty"` // JSON pointer into the body
	Detail    string `json:"detail"`            // what is wrong and what would be right
}

// problemTypes is where the types of problems are described; the name of the type follows.
const problemTypes = "https://github.com/freshet-cache/freshet/blob/main/examples/shop/README.md#"

func newProblem(status int, name, title, detail string) *problem {
	return &problem{Type: problemTypes + name, Title: title, Status: status, Detail: detail}
}

func (p *problem) Error() string {
	if p.cause != nil {
		return p.Title + ": " + p.cause.Error()
	}
	return p.Title + ": " + p.Detail
}

func (p *problem) Unwrap() error { return p.cause }

func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = make(http.Header)
	}
	p.header.Set(name, value)
	return p
}

func (p *problem) because(err error) *problem {
	p.cause = err
	return p
}

func (p *problem) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), p.header)
	body, err := json.Marshal(p)
	if err != nil { // cannot be: strings and numbers only
		body = []byte("{}")
	}
	h := w.Header()
	h.Del("ETag")
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // a client that has gone needs no answer
}

func badRequest(faults []fault) *problem {
	p := newProblem(http.StatusBadRequest, "bad-request", "Bad request", "The request cannot be understood; errors says why.")
	p.Errors = faults
	return p
}

func malformedBody(detail string) *problem {
	return newProblem(http.StatusBadRequest, "malformed-body", "Malformed body", detail)
}

func invalidBody(faults []fault) *problem {
	p := newProblem(http.StatusUnprocessableEntity, "invalid-product", "Invalid product", "The product cannot be as described; errors says why.")
	p.Errors = faults
	return p
}

func notFound(detail string) *problem {
	return newProblem(http.StatusNotFound, "not-found", "Not found", detail)
}

func preconditionFailed() *problem {
	return newProblem(http.StatusPreconditionFailed, "precondition-failed", "Precondition failed",
		"The product has another ETag than If-Match asks for: read it again.")
}

// failure is the problem for an error of a cache or a transaction in a request of the context. Errors that
// are problems stay as they are.
func failure(ctx context.Context, err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded): // the request's time is over, whatever it was waiting for
		return timeout(err)
	case errors.Is(err, node.ErrOverloaded):
		return newProblem(http.StatusServiceUnavailable, "overloaded", "Overloaded",
			"Too much is waiting for the database.").with("Retry-After", "1").because(err)
	case errors.Is(err, node.ErrUncertain):
		return newProblem(http.StatusServiceUnavailable, "uncertain", "Freshness cannot be proven",
			"The database cannot be asked whether the answer is still right, and no stale answer is allowed.").with("Retry-After", "1").because(err)
	case errors.Is(err, node.ErrClosed):
		return newProblem(http.StatusServiceUnavailable, "closing", "Closing",
			"This replica is shutting down: another one will answer.").with("Retry-After", "1").because(err)
	case errors.Is(err, context.DeadlineExceeded), sqlState(err) == "57014": // a load's own limit; query_canceled
		return timeout(err)
	case unavailable(err):
		return away(err)
	}
	return newProblem(http.StatusInternalServerError, "internal", "Internal error", "The service failed; its log says why.").because(err)
}

// away is the problem when the database, or the queue before it, is not there.
func away(err error) *problem {
	return newProblem(http.StatusServiceUnavailable, "unavailable", "Database unavailable",
		"The database did not take the request. A write may or may not have been made: read before repeating it.").with("Retry-After", "1").because(err)
}

func timeout(err error) *problem {
	return newProblem(http.StatusGatewayTimeout, "timeout", "Timeout",
		"The answer was not ready in time. A write may or may not have been made: read before repeating it.").because(err)
}

// sqlState is the code with which Postgres refused, "" if it did not.
func sqlState(err error) string {
	if refused, ok := errors.AsType[*pq.Error](err); ok {
		return string(refused.Code)
	}
	return ""
}

// unavailable reports whether the database was away, closing, full, or busy with a conflicting transaction.
func unavailable(err error) bool {
	switch state := sqlState(err); {
	case state == "57P01", state == "57P02", state == "57P03", // shutting down, crashed, starting up
		state == "40001", state == "40P01", state == "55P03": // serialization failure, deadlock, lock not available
		return true
	case len(state) == 5 && (state[:2] == "08" || state[:2] == "53"): // connection lost, out of resources
		return true
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
