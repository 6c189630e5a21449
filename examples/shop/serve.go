package shop

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// serve answers the requests for one path: it chooses the handler, bounds its time, and turns what goes wrong
// into a problem. No methods: the path does not exist.
func (a *API) serve(methods map[string]handler) http.Handler {
	allow := strings.Join(allowed(methods), ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), a.timeout)
		defer cancel()
		r = r.WithContext(ctx)
		defer a.recoverPanic(w, r)
		w.Header().Set("X-Content-Type-Options", "nosniff")

		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		handle, ok := methods[method]
		switch {
		case methods == nil:
			a.fail(w, r, notFound("There is no such path: /openapi.yaml lists them."))
			return
		case r.Method == http.MethodOptions:
			w.Header().Set("Allow", allow)
			w.WriteHeader(http.StatusNoContent)
			return
		case !ok:
			a.fail(w, r, newProblem(http.StatusMethodNotAllowed, "method-not-allowed", "Method not allowed",
				"This path takes "+allow+".").with("Allow", allow))
			return
		}
		s, faults := readSession(r)
		if faults != nil {
			a.fail(w, r, badRequest(faults))
			return
		}
		if err := handle(w, r, s); err != nil {
			a.fail(w, r, failure(ctx, err))
		}
	})
}

// allowed lists the methods in the form of the header Allow.
func allowed(methods map[string]handler) []string {
	names := append(slices.Collect(maps.Keys(methods)), http.MethodOptions)
	if _, ok := methods[http.MethodGet]; ok {
		names = append(names, http.MethodHead)
	}
	slices.Sort(names)
	return names
}

func (a *API) fail(w http.ResponseWriter, r *http.Request, p *problem) {
	if p.Status >= http.StatusInternalServerError {
		level := slog.LevelWarn
		if p.Status == http.StatusInternalServerError {
			level = slog.LevelError
		}
		a.log.LogAttrs(r.Context(), level, "shop: request failed", slog.String("method", r.Method),
			slog.String("route", r.Pattern), slog.Int("status", p.Status), slog.String("error", p.Error()))
	}
	p.write(w)
}

// recoverPanic answers a request whose handler panicked. Handlers write last, so the answer has not begun.
func (a *API) recoverPanic(w http.ResponseWriter, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(cause)
	}
	a.fail(w, r, failure(context.WithoutCancel(r.Context()), fmt.Errorf("panic: %v\n%s", cause, debug.Stack())))
}

// maxPooled is the size in bytes from which a buffer is not kept for the next answer.
const maxPooled = 1 << 20

// send answers with the value as JSON.
func (a *API) send(w http.ResponseWriter, status int, value any) error {
	body, ok := a.buffers.Get().(*bytes.Buffer)
	if !ok {
		body = new(bytes.Buffer)
	}
	body.Reset()
	defer func() {
		if body.Cap() < maxPooled {
			a.buffers.Put(body)
		}
	}()
	encoder := json.NewEncoder(body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("shop: encode: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // a client that has gone needs no answer
	return nil
}

//go:embed openapi.yaml
var description []byte

// getDescription serves the OpenAPI description of the API.
func (a *API) getDescription(w http.ResponseWriter, r *http.Request, _ session) error {
	if faults := noParameters(r.URL.RawQuery); faults != nil {
		return badRequest(faults)
	}
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("Content-Length", strconv.Itoa(len(description)))
	w.Header().Set("Cache-Control", "public, max-age=3600")
	_, _ = w.Write(description)
	return nil
}
