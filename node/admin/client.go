package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Client calls the API of one replica. It is safe for concurrent use if HTTP is.
type Client struct {
	// URL of the admin port, such as http://127.0.0.1:9090. Required.
	URL string
	// Token for what asks for a credential; "" = none is sent.
	Token string
	// HTTP does the requests; nil = http.DefaultClient. For client certificates, or servers of a private authority,
	// it has a Transport with a TLSClientConfig. Each call is bounded by its context.
	HTTP *http.Client
}

// maxAnswer bounds the answer that a client reads, in bytes.
const maxAnswer = 64 << 20

// ProblemError is an answer that says that it was not done.
type ProblemError struct {
	Status int    // of HTTP
	Title  string // in a few words
	Detail string
	Faults []Fault // what is wrong with the request, if that is it
}

// Fault is one thing that is wrong with a request: with the named parameter, or the part of the body that the JSON
// pointer leads to.
type Fault struct {
	Parameter, Pointer, Detail string
}

func (e *ProblemError) Error() string {
	text := e.Title
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	lines := []string{text}
	for _, f := range e.Faults {
		lines = append(lines, strings.TrimSpace(f.Parameter+f.Pointer+" "+f.Detail))
	}
	return strings.Join(lines, "\n")
}

// replicas is the parameter of that name.
func replicas(all bool) url.Values {
	if all {
		return url.Values{"replicas": {"all"}}
	}
	return nil
}

// call does one request. A body that is not nil is sent as JSON.
func call[T any](ctx context.Context, c Client, method, path string, query url.Values, body any) (v T, err error) {
	target := strings.TrimSuffix(c.URL, "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return v, fmt.Errorf("admin: encode the request: %w", err)
		}
		content = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, target, content)
	if err != nil {
		return v, fmt.Errorf("admin: %w", err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		request.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	answer, err := client.Do(request)
	if err != nil {
		return v, fmt.Errorf("admin: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return v, fmt.Errorf("admin: read the answer: %w", err)
	case len(text) > maxAnswer:
		return v, fmt.Errorf("admin: the answer has more than %d bytes", maxAnswer)
	case answer.StatusCode >= http.StatusBadRequest:
		return v, problemOf(answer, text)
	case len(text) == 0:
		return v, nil
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return v, fmt.Errorf("admin: %s does not answer as an admin port: %w", c.URL, err)
	}
	return v, nil
}

// problemOf is the error in an answer.
func problemOf(answer *http.Response, text []byte) error {
	var p problem
	if answer.Header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(text, &p) != nil {
		return errors.New("admin: " + answer.Request.URL.Redacted() + ": " + answer.Status)
	}
	e := &ProblemError{Status: answer.StatusCode, Title: p.Title, Detail: p.Detail}
	for _, f := range p.Errors {
		e.Faults = append(e.Faults, Fault(f))
	}
	return e
}
