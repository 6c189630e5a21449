package admin

import (
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
