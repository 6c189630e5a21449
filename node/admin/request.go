package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/freshet-cache/freshet/node"
)

// parameters reads the query, each of the known names at most once, and refuses all others.
func parameters(r *http.Request, known ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest(fault{Detail: "The query cannot be decoded; want name=value joined by &, percent-encoded."})
	}
	var faults []fault
	for name, given := range values {
		switch {
		case !slices.Contains(known, name):
			want := "this path takes no parameters"
			if len(known) > 0 {
				want = "want " + strings.Join(known, ", ")
			}
			faults = append(faults, fault{Parameter: shorten(name), Detail: "is not known; " + want})
		case len(given) > 1:
			faults = append(faults, fault{Parameter: name, Detail: "is given several times; want it once"})
		}
	}
	if faults != nil {
		slices.SortFunc(faults, func(a, b fault) int { return strings.Compare(a.Parameter, b.Parameter) })
		return nil, badRequest(faults...)
	}
	return values, nil
}

// allReplicas reads the parameter "replicas": "one", which it is if it is not given, or "all".
func allReplicas(values url.Values) (bool, error) {
	switch v := values.Get("replicas"); {
	case v == "all":
		return true, nil
	case v == "one", !values.Has("replicas"):
		return false, nil
	}
	return false, badRequest(fault{Parameter: "replicas", Detail: `want "one" or "all"`})
}

// ofReplicas reads what a request has that asks this replica or all: the parameter "replicas" alone, and a node.
func (a *API) ofReplicas(r *http.Request) (n *node.Node, all bool, err error) {
	values, err := parameters(r, "replicas")
	if err != nil {
		return nil, false, err
	}
	if all, err = allReplicas(values); err != nil {
		return nil, false, err
	}
	n, err = a.opened()
	return n, all, err
}

// showing is an operation without parameters that answers with what get returns.
func showing[T any](a *API, get func(ctx context.Context, n *node.Node) (T, error)) operation {
	return operation{do: func(w http.ResponseWriter, r *http.Request) error {
		if _, err := parameters(r); err != nil {
			return err
		}
		n, err := a.opened()
		if err != nil {
			return err
		}
		v, err := get(r.Context(), n)
		if err != nil {
			return err
		}
		return send(w, http.StatusOK, v)
	}}
}

// read decodes a body that is one JSON object with the fields of T and no others.
func read[T any](w http.ResponseWriter, r *http.Request) (T, error) {
	var v T
	mediaType, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, hasCharset := parameters["charset"]
	encoding := r.Header.Get("Content-Encoding")
	if err != nil || mediaType != "application/json" || hasCharset && !strings.EqualFold(charset, "utf-8") || encoding != "" && encoding != "identity" {
		return v, newProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "Unsupported media type",
			"Want a body of type application/json in UTF-8 without Content-Encoding.").with("Accept-Post", "application/json")
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(Timeout)) // a recorder in a test has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{}) // else the server would wait for the rest before it answers
	}
	switch tooLarge, ok := errors.AsType[*http.MaxBytesError](err); {
	case ok:
		return v, newProblem(http.StatusRequestEntityTooLarge, "too-large", "Body too large", fmt.Sprintf("The body has more than %d bytes.", tooLarge.Limit))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return v, newProblem(http.StatusRequestTimeout, "slow-body", "Request timeout", "The body did not arrive in time.").because(err)
	case err != nil:
		return v, malformedBody("The body ended early.").because(err)
	}
	if !utf8.Valid(body) {
		return v, malformedBody("The body is not UTF-8.")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&v); err != nil {
		return v, malformedBody("Want one JSON object with the fields that /admin/v1/openapi.yaml names: " + strings.TrimPrefix(err.Error(), "json: ") + ".")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return v, malformedBody(fmt.Sprintf("Want nothing after the JSON object; got more after byte %d.", decoder.InputOffset()))
	}
	return v, nil
}

// empty refuses a body.
func empty(r *http.Request) error {
	if n, err := r.Body.Read(make([]byte, 1)); n > 0 || err != nil && !errors.Is(err, io.EOF) {
		return malformedBody("Want no body.")
	}
	return nil
}

// send answers with the value as JSON.
func send[T any](w http.ResponseWriter, status int, v T) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("admin: encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that has gone needs no answer
	return nil
}

// shorten keeps a client's text in an answer short.
func shorten(s string) string {
	if len(s) > 64 {
		return fmt.Sprintf("%.64q...", s)
	}
	return s
}
