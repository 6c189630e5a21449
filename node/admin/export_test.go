package admin

import "github.com/prometheus/client_golang/prometheus"

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
