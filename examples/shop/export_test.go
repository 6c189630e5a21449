package shop

import (
	"errors"
	"net/http"
	"os"
	"regexp"

	"github.com/freshet-cache/freshet/cluster"
)

// Routes lists what Handler serves, as method and path.
func Routes() (routes []string) {
	for _, r := range new(API).routes() {
		for method := range r.methods {
			routes = append(routes, method+" "+r.path)
		}
	}
	return routes
}

// ProblemNames lists the names of all problems, from the source.
func ProblemNames() (names []string) {
	for _, file := range []string{"problem.go", "body.go", "serve.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			panic(err)
		}
		for _, match := range regexp.MustCompile(`newProblem\(http\.Status\w+, "([a-z-]+)"`).FindAllSubmatch(text, -1) {
			names = append(names, string(match[1]))
		}
	}
	return names
}

// ParseFilter is parseFilter with its faults as one error.
func ParseFilter(rawQuery string) (cluster.Params, error) {
	filter, faults := parseFilter(rawQuery)
	var errs []error
	for _, f := range faults {
		errs = append(errs, errors.New(f.Parameter+": "+f.Detail))
	}
	return filter, errors.Join(errs...)
}

// ProductList is the statement of a list.
func ProductList(filter cluster.Params) (string, []any, error) { return productList(filter) }

// ServePanic serves a path whose handler panics.
func ServePanic(a *API, cause string) http.Handler {
	return a.serve(map[string]handler{http.MethodGet: func(http.ResponseWriter, *http.Request, session) error { panic(cause) }})
}
