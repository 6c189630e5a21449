package admin

import (
	"net/http"
	"net/http/httptest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/freshet-cache/freshet/node"
)

// HealthOf is what /readyz answers of a replica in service, and what it answers with ?verbose.
func HealthOf(s node.Stats) (h Health, verbose string) {
	p := healthOf(s)
	w := httptest.NewRecorder()
	p.list(w)
	return p.health(), w.Body.String()
}

// Route is an operation for tests.
type Route struct {
	Method, Path string
	Guarded      bool
}

// Routes are all operations.
func Routes() []Route {
	a := &API{config: Config{Gatherer: prometheus.NewRegistry()}}
	var all []Route
	for path, methods := range a.paths() {
		for method, op := range methods {
			all = append(all, Route{method, path, op.guarded})
		}
	}
	return all
}

// Fail answers a request with the problem for the error.
func (a *API) Fail(w http.ResponseWriter, r *http.Request, err error) {
	a.fail(w, r, failure(r.Context(), err))
}

// Panic answers a request whose operation panics.
func (a *API) Panic(w http.ResponseWriter, r *http.Request, with string) {
	a.serve(methods{r.Method: {do: func(http.ResponseWriter, *http.Request) error { panic(with) }}}).ServeHTTP(w, r)
}
