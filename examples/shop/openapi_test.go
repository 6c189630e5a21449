package shop_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/freshet-cache/freshet/examples/shop"
)

var description = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	return legacy.NewRouter(doc)
})

// conforms holds an answer against openapi.yaml: its status, headers and body must be described. When it is a
// success, the request must be one that the file allows, too.
func conforms(t *testing.T, request *http.Request, body string, a answer) {
	t.Helper()
	if a.status == http.StatusMethodNotAllowed || request.Method == http.MethodOptions || request.Method == http.MethodHead {
		return // OpenAPI describes what a path takes
	}
	router, err := description()
	if err != nil {
		t.Fatal(err)
	}
	described := request.Clone(t.Context())
	described.URL.Scheme, described.URL.Host, described.Host = "", "", ""
	described.Body = io.NopCloser(strings.NewReader(body))
	route, parameters, err := router.FindRoute(described)
	if err != nil || strings.HasSuffix(described.URL.Path, "/") { // which the router takes for an empty id
		if a.status != http.StatusNotFound {
			t.Errorf("%s %s is not described, but answered with %d", request.Method, request.URL.Path, a.status)
		}
		return
	}
	input := &openapi3filter.RequestValidationInput{Request: described, PathParams: parameters, Route: route}
	if a.status < 300 {
		if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
			t.Errorf("%s %s was taken, but openapi.yaml does not allow it: %v", request.Method, request.URL, err)
		}
	}
	err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	})
	if err != nil {
		t.Errorf("%s %s: the answer %d %s is not as described: %v", request.Method, request.URL, a.status, a.body, err)
	}
}

func TestDescriptionHasEveryRouteAndNoOther(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	var described []string
	for path, entry := range doc.Paths.Map() {
		for method := range entry.Operations() {
			described = append(described, method+" "+path)
		}
	}
	slices.Sort(described)
	served := shop.Routes()
	if slices.Sort(served); !slices.Equal(described, served) {
		t.Errorf("described: %q\nserved:    %q", described, served)
	}
}

func TestDescriptionIsServed(t *testing.T) {
	a := newCatalogue(t, shop.SeedConfig{Products: 1}).replica(t, nil).do(t, http.MethodGet, "/openapi.yaml", "")
	want, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/yaml" || !bytes.Equal(a.body, want) {
		t.Errorf("got %d %s, %d bytes, want the file of %d bytes", a.status, a.header.Get("Content-Type"), len(a.body), len(want))
	}
}

// The types of problems are addresses of headings in the README.
func TestProblemsAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range shop.ProblemNames() {
		if !bytes.Contains(readme, []byte("\n### "+name+"\n")) {
			t.Errorf("README.md does not describe the problem %s", name)
		}
	}
}
