package shop_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/examples/shop"
	"github.com/freshet-cache/freshet/internal/devstack/stacktest"
	"github.com/freshet-cache/freshet/node"
)

func TestProductLifeCycle(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 10})
	r := c.replica(t, nil)
	// The negative entry must not outlive the creation.
	wantProblem(t, r.do(t, "GET", "/products/11", ""), http.StatusNotFound, "not-found")

	created := r.do(t, "POST", "/products", `{"name": "Oak Shelf <b>", "category_id": 2, "price_cents": 4999}`)
	p := decode[shop.Product](t, created)
	if created.status != http.StatusCreated || created.header.Get("Location") != "/products/11" || p.ID != 11 || p.Revision != 1 ||
		p.Status != shop.Active || p.Stock != 0 || p.Attributes == nil || p.Name != "Oak Shelf <b>" {
		t.Fatalf("created: %d %v %+v", created.status, created.header, p)
	}
	read, a := get[shop.Product](t, r, "/products/11", "Freshet-Token", created.header.Get("Freshet-Token"))
	if !sameProduct(read, p) || a.header.Get("ETag") != created.header.Get("ETag") || string(a.body) != string(created.body) {
		t.Errorf("read back: %s %s\ncreated: %s %s", a.header.Get("ETag"), a.body, created.header.Get("ETag"), created.body)
	}

	patched := r.do(t, "PATCH", "/products/11", `{"stock": 5, "attributes": {"colour": "red", "size": "L"}}`)
	p = decode[shop.Product](t, patched)
	if patched.status != http.StatusOK || p.Revision != 2 || p.Stock != 5 || p.PriceCents != 4999 || fmt.Sprint(p.Attributes) != "map[colour:red size:L]" {
		t.Errorf("patched: %d %+v", patched.status, p)
	}
	patched = r.do(t, "PATCH", "/products/11", `{"attributes": {"size": null, "no": null}, "status": "archived", "description": "a\nb"}`,
		"Content-Type", "application/merge-patch+json; charset=UTF-8")
	p = decode[shop.Product](t, patched)
	if patched.status != http.StatusOK || p.Revision != 3 || p.Status != shop.Archived || p.Description != "a\nb" || fmt.Sprint(p.Attributes) != "map[colour:red]" {
		t.Errorf("patched: %d %+v", patched.status, p)
	}
	if list, _ := get[shop.ProductPage](t, r, "/products?status=archived&category=2&search=shelf&limit=100", "Freshet-Token", patched.header.Get("Freshet-Token")); !slices.ContainsFunc(list.Items, func(p shop.Product) bool { return p.ID == 11 }) {
		t.Errorf("the list does not show the product: %+v", list)
	}

	deleted := r.do(t, "DELETE", "/products/11", "")
	if deleted.status != http.StatusNoContent || len(deleted.body) != 0 || deleted.header.Get("Freshet-Token") == "" {
		t.Errorf("deleted: %d %v", deleted.status, deleted.header)
	}
	wantProblem(t, r.do(t, "GET", "/products/11", "", "Freshet-Token", deleted.header.Get("Freshet-Token")), http.StatusNotFound, "not-found")
	wantProblem(t, r.do(t, "DELETE", "/products/11", ""), http.StatusNotFound, "not-found")
	wantProblem(t, r.do(t, "PATCH", "/products/11", `{"stock": 1}`), http.StatusNotFound, "not-found")
}

// I2: a client that carries the token reads its writes on every replica, also one that hears of changes only by a
// poll every ten seconds.
func TestI2ReadYourWritesOnAnotherReplica(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 5})
	writer := c.replica(t, nil)
	reader := c.replica(t, func(config *node.Config) {
		config.NATS = node.NATSConfig{}
		config.Postgres.PollInterval = 10 * time.Second
		config.Budget = time.Hour
	})
	token := ""
	for stock := range int64(30) {
		get[shop.Product](t, reader, "/products/1")
		get[shop.ProductPage](t, reader, "/products?limit=1")
		a := writer.do(t, "PATCH", "/products/1", fmt.Sprintf(`{"stock": %d}`, stock), "Freshet-Token", token)
		if a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		token = a.header.Get("Freshet-Token")
		list, b := get[shop.ProductPage](t, reader, "/products?limit=1", "Freshet-Token", token)
		if list.Items[0].Stock != stock {
			t.Errorf("the list shows the stock %d, want %d", list.Items[0].Stock, stock)
		}
		p, _ := get[shop.Product](t, reader, "/products/1", "Freshet-Token", token)
		if p.Stock != stock {
			t.Errorf("the reader sees the stock %d, want %d", p.Stock, stock)
		}
		// The tokens of two sessions together cover both.
		p, _ = get[shop.Product](t, writer, "/products/1", "Freshet-Token", token, "Freshet-Token", b.header.Get("Freshet-Token"))
		if p.Stock != stock {
			t.Errorf("the writer sees the stock %d, want %d", p.Stock, stock)
		}
	}
}

func TestIfMatchGuardsWrites(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 5})
	r := c.replica(t, nil)
	_, a := get[shop.Product](t, r, "/products/1")
	tag := a.header.Get("ETag")
	for _, value := range []string{`"0000000000000000"`, "W/" + tag} {
		wantProblem(t, r.do(t, "PATCH", "/products/1", `{"stock": 1}`, "If-Match", value), http.StatusPreconditionFailed, "precondition-failed")
		wantProblem(t, r.do(t, "DELETE", "/products/1", "", "If-Match", value), http.StatusPreconditionFailed, "precondition-failed")
	}
	p := wantProblem(t, r.do(t, "PATCH", "/products/1", `{"stock": 1}`, "If-Match", "junk"), http.StatusBadRequest, "bad-request")
	if len(p.Errors) != 1 || p.Errors[0].Header != "If-Match" {
		t.Errorf("got %+v", p)
	}
	// A chain of writes, each on the answer of the one before.
	for stock := range 5 {
		a = r.do(t, "PATCH", "/products/1", fmt.Sprintf(`{"stock": %d}`, stock), "If-Match", `"x", `+tag)
		if a.status != http.StatusOK || a.header.Get("ETag") == tag {
			t.Fatalf("%d %s", a.status, a.body)
		}
		tag = a.header.Get("ETag")
	}
	// A change that this replica has not heard of counts.
	c.exec(t, `update products set stock = 99 where id = 1`)
	wantProblem(t, r.do(t, "PATCH", "/products/1", `{"stock": 1}`, "If-Match", tag), http.StatusPreconditionFailed, "precondition-failed")
	if a := r.do(t, "PATCH", "/products/1", `{"stock": 1}`, "If-Match", "*"); a.status != http.StatusOK {
		t.Errorf("If-Match: *: %d %s", a.status, a.body)
	}
	_, a = get[shop.Product](t, r, "/products/1", "Freshet-Budget", "0")
	if a := r.do(t, "DELETE", "/products/1", "", "If-Match", a.header.Get("ETag")); a.status != http.StatusNoContent {
		t.Errorf("delete: %d %s", a.status, a.body)
	}
	wantProblem(t, r.do(t, "PATCH", "/products/1", `{"stock": 1}`, "If-Match", "*"), http.StatusNotFound, "not-found")
	wantProblem(t, r.do(t, "DELETE", "/products/1", "", "If-Match", "*"), http.StatusNotFound, "not-found")
}

// Of many clients that change one version, one wins.
func TestIfMatchLetsOneWin(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 2})
	replicas := []*replica{c.replica(t, nil), c.replica(t, nil)}
	for range 5 {
		_, a := get[shop.Product](t, replicas[0], "/products/1", "Freshet-Budget", "0")
		statuses := make([]int, 8)
		var work sync.WaitGroup
		for i := range statuses {
			work.Go(func() {
				statuses[i] = replicas[i%2].do(t, "PATCH", "/products/1", fmt.Sprintf(`{"stock": %d}`, i), "If-Match", a.header.Get("ETag")).status
			})
		}
		work.Wait()
		slices.Sort(statuses)
		if statuses[0] != http.StatusOK || statuses[1] != http.StatusPreconditionFailed || statuses[7] != http.StatusPreconditionFailed {
			t.Errorf("got %d, want one 200 and seven 412", statuses)
		}
	}
}

func TestConcurrentPatchesAddUp(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 2})
	r := c.replica(t, nil)
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			if a := r.do(t, "PATCH", "/products/1", fmt.Sprintf(`{"attributes": {"k%d": "v"}}`, i)); a.status != http.StatusOK {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	work.Wait()
	p, _ := get[shop.Product](t, r, "/products/1", "Freshet-Budget", "0")
	if p.Revision != 21 || len(p.Attributes) != 24 {
		t.Errorf("revision %d with %d attributes, want 21 with 24", p.Revision, len(p.Attributes))
	}
}

func TestBadBodies(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 3})
	r := c.replica(t, nil)
	before := digest(t, c.db)
	const good = `"name": "x", "category_id": 1, "price_cents": 1`
	attributes := strings.Builder{}
	for i := range 33 {
		fmt.Fprintf(&attributes, `,"k%d":"v"`, i)
	}
	for _, x := range []struct {
		method, body string
		status       int
		name         string
		faults       []string
	}{
		{"POST", ` `, 400, "malformed-body", nil},
		{"POST", `null`, 400, "malformed-body", nil},
		{"POST", `[]`, 400, "malformed-body", nil},
		{"POST", `"x"`, 400, "malformed-body", nil},
		{"POST", `{"name": }`, 400, "malformed-body", nil},
		{"POST", `{"name": "x"`, 400, "malformed-body", nil},
		{"POST", `{` + good + `} {}`, 400, "malformed-body", nil},
		{"POST", `{` + good + `} x`, 400, "malformed-body", nil},
		{"POST", "{\"name\": \"\xff\"}", 400, "malformed-body", nil},
		{"POST", strings.Repeat(`{"a":`, 20_000), 413, "too-large", nil},
		{"POST", `{` + good + `, "description": "` + strings.Repeat("x", 64<<10) + `"}`, 413, "too-large", nil},
		{"POST", `{` + good + `, "colour": "red", "Stock": 1, "a/b~c": 0}`, 400, "bad-request", []string{"/Stock", "/a~1b~0c", "/colour"}},
		{"POST", `{"colour": "red", "stock": -1}`, 400, "bad-request", []string{"/colour", "/stock", "/name", "/category_id", "/price_cents"}},
		{"POST", `{}`, 422, "invalid-product", []string{"/name", "/category_id", "/price_cents"}},
		{
			"POST", `{"name": "", "category_id": 0, "price_cents": -1, "status": "gone", "stock": 1.5, "attributes": []}`, 422, "invalid-product",
			[]string{"/attributes", "/category_id", "/name", "/price_cents", "/status", "/stock"},
		},
		{
			"POST", `{"name": null, "category_id": "1", "price_cents": 1e2, "status": null, "stock": null, "attributes": null, "description": null}`, 422, "invalid-product",
			[]string{"/attributes", "/category_id", "/description", "/name", "/price_cents", "/status", "/stock"},
		},
		{"POST", `{"name": " x", "category_id": 1, "price_cents": 10000000001, "description": "a\u0000b"}`, 422, "invalid-product", []string{"/description", "/name", "/price_cents"}},
		{"POST", `{` + good + `, "id": 5, "revision": 1, "created_at": "2020-01-01T00:00:00Z"}`, 422, "invalid-product", []string{"/created_at", "/id", "/revision"}},
		{
			"POST", `{` + good + `, "attributes": {"": "x", "a": 1, "b": "` + strings.Repeat("x", 257) + `", "c": {}}}`, 422, "invalid-product",
			[]string{"/attributes/", "/attributes/a", "/attributes/b", "/attributes/c"},
		},
		{"POST", `{` + good + `, "attributes": {` + attributes.String()[1:] + `}}`, 422, "invalid-product", []string{"/attributes"}},
		{"POST", `{"name": "` + strings.Repeat("é", 201) + `", "category_id": 1, "price_cents": 1}`, 422, "invalid-product", []string{"/name"}},
		{"POST", `{"name": "x", "category_id": 777, "price_cents": 1}`, 422, "invalid-product", []string{"/category_id"}},
		{"PATCH", `{}`, 422, "invalid-product", []string{""}},
		{"PATCH", `{"category_id": 777}`, 422, "invalid-product", []string{"/category_id"}},
		{"PATCH", `{"name": null, "price": 1}`, 400, "bad-request", []string{"/price", "/name"}},
		{"PATCH", `{"attributes": {` + attributes.String()[1:] + `}}`, 422, "invalid-product", []string{"/attributes"}},
	} {
		path := "/products"
		if x.method == "PATCH" {
			path = "/products/1"
		}
		p := wantProblem(t, r.do(t, x.method, path, x.body), x.status, x.name)
		var faults []string
		for _, f := range p.Errors {
			faults = append(faults, f.Pointer)
		}
		if !slices.Equal(faults, x.faults) {
			t.Errorf("%s %.80s: got %q, want %q", x.method, x.body, faults, x.faults)
		}
	}
	for _, x := range []struct{ method, kind, accept string }{
		{"POST", "text/plain", "application/json"},
		{"POST", "", "application/json"},
		{"POST", "application/json; charset=latin1", "application/json"},
		{"POST", "application/merge-patch+json", "application/json"},
		{"PATCH", "application/json-patch+json", "application/merge-patch+json, application/json"},
	} {
		path, header := "/products", "Accept-Post"
		if x.method == "PATCH" {
			path, header = "/products/1", "Accept-Patch"
		}
		a := r.do(t, x.method, path, `{`+good+`}`, "Content-Type", x.kind)
		wantProblem(t, a, http.StatusUnsupportedMediaType, "unsupported-media-type")
		if a.header.Get(header) != x.accept {
			t.Errorf("%s: %q, want %q", header, a.header.Get(header), x.accept)
		}
	}
	wantProblem(t, r.do(t, "POST", "/products", `{`+good+`}`, "Content-Encoding", "gzip"), http.StatusUnsupportedMediaType, "unsupported-media-type")
	wantProblem(t, r.do(t, "POST", "/products?x=1", `{`+good+`}`), http.StatusBadRequest, "bad-request")
	if digest(t, c.db) != before {
		t.Error("a refused write changed the tables")
	}
	// The largest that is allowed is stored.
	big := fmt.Sprintf(`{"name": "%s", "description": "%s", "category_id": 1, "price_cents": 10000000000}`, strings.Repeat("é", 200), strings.Repeat("é", 8000))
	if a := r.do(t, "POST", "/products", big); a.status != http.StatusCreated {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// eager makes a replica notice within a tenth of a second that Postgres is away.
func eager(config *node.Config) {
	config.Budget = 100 * time.Millisecond
	config.Postgres.PollInterval = 25 * time.Millisecond
}

func TestDatabaseAway(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 20})
	r := c.replica(t, func(config *node.Config) { eager(config) })
	stale := c.replica(t, func(config *node.Config) {
		eager(config)
		config.MaxStale = time.Hour
	})
	get[shop.Product](t, r, "/products/1")
	get[shop.Product](t, stale, "/products/1")
	postgres := stacktest.Stack().Postgres
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			_ = postgres.Start(context.WithoutCancel(t.Context()))
		}
	}()
	eventually(t, "a stale answer", func() bool {
		_, a := get[shop.Product](t, stale, "/products/1")
		return a.header.Get("Freshet-Fresh") == "stale" && strings.Contains(a.header.Get("Cache-Status"), "; detail=stale")
	})
	for _, path := range []string{"/products/1", "/products/7", "/products", "/categories"} {
		a := r.do(t, "GET", path, "")
		if a.status != http.StatusServiceUnavailable && a.status != http.StatusGatewayTimeout {
			t.Errorf("GET %s: %d %s", path, a.status, a.body)
		}
		if a.status == http.StatusServiceUnavailable && a.header.Get("Retry-After") == "" {
			t.Errorf("GET %s: 503 without Retry-After", path)
		}
	}
	for _, method := range []string{"PATCH", "DELETE"} {
		body := ""
		if method == "PATCH" {
			body = `{"stock": 1}`
		}
		wantProblem(t, r.do(t, method, "/products/1", body), http.StatusServiceUnavailable, "unavailable")
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a fresh answer after recovery", func() bool {
		return r.do(t, "GET", "/products/7", "", "Freshet-Budget", "0").status == http.StatusOK &&
			r.do(t, "PATCH", "/products/1", `{"stock": 1}`).status == http.StatusOK
	})
}

// serve is a replica whose API has other options.
func (c *catalogue) serve(t *testing.T, o shop.Options) *replica {
	t.Helper()
	n, err := node.Open(t.Context(), node.Config{App: c.app, Postgres: node.PostgresConfig{DSN: c.dsn}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	api, err := shop.New(n, o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(api.Handler())
	t.Cleanup(server.Close)
	return &replica{Server: server, node: n}
}

func TestTimeoutIs504(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 2})
	r := c.serve(t, shop.Options{Timeout: 1, Logger: slog.New(slog.DiscardHandler)})
	wantProblem(t, r.do(t, "GET", "/products/1", ""), http.StatusGatewayTimeout, "timeout")
	wantProblem(t, r.do(t, "DELETE", "/products/1", ""), http.StatusGatewayTimeout, "timeout")
}

func TestClosedNodeIs503(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 2})
	r := c.serve(t, shop.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := r.node.Close(); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, r.do(t, "GET", "/products/1", ""), http.StatusServiceUnavailable, "closing")
	wantProblem(t, r.do(t, "DELETE", "/products/1", ""), http.StatusServiceUnavailable, "closing")
}

func TestSlowBodyIs408(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 2})
	r := c.serve(t, shop.Options{Timeout: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /products HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 408 ") {
		t.Errorf("got %q, %v", status, err)
	}
}

func TestPanicIs500AndLogged(t *testing.T) {
	c := newCatalogue(t, shop.SeedConfig{Products: 2})
	var log strings.Builder
	n, err := node.Open(t.Context(), node.Config{App: c.app, Postgres: node.PostgresConfig{DSN: c.dsn}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	api, err := shop.New(n, shop.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	recorder := httptest.NewRecorder()
	shop.ServePanic(api, "spilt milk").ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/products/1", nil))
	wantProblem(t, answer{recorder.Code, recorder.Header(), recorder.Body.Bytes()}, http.StatusInternalServerError, "internal")
	if strings.Contains(recorder.Body.String(), "milk") {
		t.Errorf("the client learns of the panic: %s", recorder.Body)
	}
	if !strings.Contains(log.String(), "spilt milk") || !strings.Contains(log.String(), "export_test.go") {
		t.Errorf("the log does not say what panicked and where: %s", log.String())
	}
}
