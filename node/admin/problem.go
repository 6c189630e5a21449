package admin

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"

	"github.com/freshet-cache/freshet/node"
)

// problem is an error answer in the form of RFC 9457.
type problem struct {
	Type   string  `json:"type"`
	Title  string  `json:"title"`
	Status int     `json:"status"`
	Detail string  `json:"detail,omitempty"`
	Errors []fault `json:"errors,omitempty"` // all that is wrong with the request

	header http.Header // added to the answer
	cause  error       // for the log, when it is the service's fault
}

// fault is one thing that is wrong with a request.
type fault struct {
	Parameter string `json:"parameter,omitempty"` // of the path or the query
	Pointer   string `json:"pointer,omitempty"`   // JSON pointer into the body
	Detail    string `json:"detail"`              // what is wrong and what would be right
}

// problemTypes is where the types of problems are described; the name of the type follows.
const problemTypes = "https://github.com/freshet-cache/freshet/blob/main/docs/admin.md#"

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

// loggable is what may be logged of it.
func (p *problem) loggable() string {
	if p.cause != nil {
		return p.Title + ": " + node.Loggable(p.cause)
	}
	return p.Title
}

// errPanicked says that the code of a request panicked, which the log tells more of.
var errPanicked = errors.New("a request panicked")

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
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // a client that has gone needs no answer
}

func badRequest(faults ...fault) *problem {
	p := newProblem(http.StatusBadRequest, "bad-request", "Bad request", "The request cannot be understood; errors says why.")
	p.Errors = faults
	return p
}

func malformedBody(detail string) *problem {
	return newProblem(http.StatusBadRequest, "malformed-body", "Malformed body", detail)
}

// refused is for a request that is understood and cannot be done as it is.
func refused(detail string) *problem {
	return newProblem(http.StatusUnprocessableEntity, "refused", "Refused", detail)
}

func notFound(detail string) *problem {
	return newProblem(http.StatusNotFound, "not-found", "Not found", detail)
}

// failure is the problem for an error of the node in a request of the context. Errors that are problems stay as
// they are.
func failure(ctx context.Context, err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return newProblem(http.StatusGatewayTimeout, "timeout", "Timeout",
			"It took longer than "+Timeout.String()+"; of a change it is not known whether it was made.").because(err)
	case errors.Is(err, node.ErrConflict):
		return newProblem(http.StatusConflict, "conflict", "Conflict", err.Error())
	case errors.Is(err, node.ErrClosed):
		return newProblem(http.StatusServiceUnavailable, "closing", "Closing", "The node is closed or closing.").with("Retry-After", "1").because(err)
	case errors.Is(err, node.ErrOverloaded):
		return newProblem(http.StatusServiceUnavailable, "overloaded", "Overloaded", "Too much is waiting for Postgres.").with("Retry-After", "1").because(err)
	}
	return newProblem(http.StatusBadGateway, "failed", "Failed", "A server behind this replica did not do it; the replica's log says why.").because(err)
}
