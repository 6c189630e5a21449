package shop

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/nodehttp"
)

// Options are what New can be told beside the node. The zero value is good.
type Options struct {
	Timeout    time.Duration // of a request, from its headers to its answer; 0 = 10 s, at most 1 min
	MaxEntries int           // products that each replica keeps in its memory (L1); 0 = the node's default
	WarmUp     bool          // fill the caches before the node is ready: see warmUps
	// WriteBehind: carts are written behind, by NATS JetStream, which the node must have; else through.
	WriteBehind bool
	Logger      *slog.Logger // for requests that fail by the service's fault; nil = slog.Default()
	// Registry and Tracer get the metrics and the spans of requests; nil = none.
	Registry prometheus.Registerer
	Tracer   trace.TracerProvider
}

func (o Options) timeout() time.Duration { return cmp.Or(o.Timeout, 10*time.Second) }

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.Default()
	}
	return o.Logger
}

func (o Options) validate() error {
	var problems []error
	if o.Timeout < 0 || o.Timeout > time.Minute {
		problems = append(problems, fmt.Errorf("Timeout: %v; want 0 to 1m", o.Timeout))
	}
	if o.MaxEntries < 0 {
		problems = append(problems, fmt.Errorf("MaxEntries: %d; want 0 or more", o.MaxEntries))
	}
	return errors.Join(problems...)
}

// API answers the HTTP requests of the catalogue from the caches of one node.
type API struct {
	node        *node.Node
	timeout     time.Duration
	writeBehind bool
	log         *slog.Logger
	http        *nodehttp.Middleware
	buffers     sync.Pool // of *bytes.Buffer, for the bodies of answers

	products     *node.Cache[Product]
	productPages *node.QueryCache[ProductPage]
	productCount *node.QueryCache[int64]
	categories   *node.Cache[Category]
	categoryPage *node.QueryCache[CategoryPage]
	carts        *node.Cache[Cart]
}

// What is asked for again and again never expires under a request, and where the node allows STALE answers (its
// MaxStale), a slow database delays a page by softTimeout at most.
const softTimeout = 2 * time.Second

// New makes the API on n, whose Postgres holds the tables of Migrate. The caller closes n, after the last
// request. One node takes one API: the namespaces product, category and cart are its own.
func New(n *node.Node, o Options) (*API, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("shop: %w", err)
	}
	a := &API{node: n, timeout: o.timeout(), writeBehind: o.WriteBehind, log: o.logger()}
	var err error
	if a.http, err = nodehttp.New(nodehttp.Config{Registry: o.Registry, Tracer: o.Tracer, Budget: true}); err != nil {
		return nil, fmt.Errorf("shop: %w", err)
	}
	refresh := node.Refresh{Ahead: 0.8, Beta: 1}
	var errs [6]error
	var warm warmUps
	if o.WarmUp {
		warm = allWarmUps()
	}
	a.products, errs[0] = node.NewCache(n, node.CacheConfig[Product]{
		Namespace: "product", MaxEntries: o.MaxEntries, Source: node.SQL[Product](productsByID),
		WarmUp: warm.products, Refresh: refresh, SoftTimeout: softTimeout, Codec: node.CBOR,
	})
	a.productPages, errs[1] = node.NewQueryCache(n, node.QueryConfig[ProductPage]{
		Namespace: "product", View: "page", Query: productList, WarmUp: warm.productPages, Refresh: refresh, SoftTimeout: softTimeout,
		Codec: node.CBOR, Compress: node.Compression{Algorithm: node.Zstd}, // up to 100 products of much the same words
		Tags: func(filter cluster.Params, _ ProductPage) []string { return listTags(filter) },
	})
	a.categories, errs[2] = node.NewCache(n, node.CacheConfig[Category]{
		Namespace: "category", Source: node.SQL[Category](categoriesByID), Store: categoryStore{},
		WarmUp: warm.categories, Refresh: refresh, SoftTimeout: softTimeout,
	})
	a.categoryPage, errs[3] = node.NewQueryCache(n, node.QueryConfig[CategoryPage]{
		Namespace: "category", View: "page", WarmUp: warm.categoryPage, Refresh: refresh, SoftTimeout: softTimeout,
		Query: func(cluster.Params) (string, []any, error) { return categoryList, nil, nil },
		Tags:  func(cluster.Params, CategoryPage) []string { return []string{"category"} },
	})
	a.productCount, errs[4] = node.NewQueryCache(n, node.QueryConfig[int64]{
		Namespace: "product", View: "count", Query: productCount, Refresh: refresh, SoftTimeout: softTimeout,
		Tags: func(filter cluster.Params, _ int64) []string { return countTags(filter) },
	})
	a.carts, errs[5] = node.NewCache(n, node.CacheConfig[Cart]{
		Namespace: "cart", Source: node.SQL[Cart](cartsByID), Store: cartStore(), WriteBehind: o.WriteBehind,
	})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("shop: %w", err)
	}
	return a, nil
}

// A route is a path pattern of http.ServeMux and its handlers by method.
type route struct {
	path    string
	methods map[string]handler
}

// A handler answers a request or returns what becomes a problem. It must not write before it knows that it can.
type handler func(w http.ResponseWriter, r *http.Request, s session) error

func (a *API) routes() []route {
	return []route{
		{"/products", map[string]handler{"GET": a.listProducts, "POST": a.createProduct}},
		{"/products/count", map[string]handler{"GET": a.countProducts}},
		{"/products/{id}", map[string]handler{"GET": a.getProduct, "PATCH": a.patchProduct, "DELETE": a.deleteProduct}},
		{"/products/{id}/sale", map[string]handler{"POST": a.putSale}},
		{"/quotes", map[string]handler{"GET": a.getQuote}},
		{"/carts/{id}", map[string]handler{"GET": a.getCart, "PUT": a.putCart, "DELETE": a.deleteCart}},
		{"/categories", map[string]handler{"GET": a.listCategories}},
		{"/categories/{id}", map[string]handler{"GET": a.getCategory, "PUT": a.putCategory}},
		{"/categories/{id}/page", map[string]handler{"GET": a.viewCategory}},
		{"/openapi.yaml", map[string]handler{"GET": a.getDescription}},
	}
}

// Handler serves the routes of openapi.yaml, which is one of them.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range a.routes() {
		mux.Handle(r.path, a.serve(r.methods))
	}
	mux.Handle("/", a.serve(nil))
	return a.http.Handler(mux)
}

func (a *API) listProducts(w http.ResponseWriter, r *http.Request, s session) error {
	filter, faults := parseFilter(r.URL.RawQuery)
	if faults != nil {
		return badRequest(faults)
	}
	entry, err := a.productPages.Lookup(r.Context(), filter, s.Options()...)
	return answer(a, w, r, entry, err, listTags(filter)...)
}

func (a *API) countProducts(w http.ResponseWriter, r *http.Request, s session) error {
	filter, faults := parseConditions(r.URL.RawQuery)
	if faults != nil {
		return badRequest(faults)
	}
	entry, err := a.productCount.Lookup(r.Context(), filter, s.Options()...)
	return answer(a, w, r, entry, err, countTags(filter)...)
}

func (a *API) getProduct(w http.ResponseWriter, r *http.Request, s session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	entry, err := a.products.Lookup(r.Context(), id, s.Options()...)
	return answer(a, w, r, entry, err, "product:"+id)
}

// identify reads the request for one thing: the id in its path, and no parameters.
func identify(r *http.Request) (id string, err error) {
	id, faults := readID(r.PathValue("id"))
	if faults = append(faults, noParameters(r.URL.RawQuery)...); faults != nil {
		return "", badRequest(faults)
	}
	return id, nil
}

// answer sends the entry of a read, or that it has not changed, or that there is none. The keys name what the
// answer depends on.
func answer[V any](a *API, w http.ResponseWriter, r *http.Request, entry node.Entry[V], err error, keys ...string) error {
	if err != nil && !errors.Is(err, node.ErrNotFound) {
		return err
	}
	label(w, r, entry, keys)
	if err != nil {
		return notFound("There is nothing with this id.")
	}
	w.Header().Set("Cache-Control", "private, max-age=0, must-revalidate")
	if entry.Pending { // it has no version yet
		return a.send(w, http.StatusOK, entry.Value)
	}
	tag := nodehttp.ETag(entry.Version)
	w.Header().Set("ETag", tag)
	if nodehttp.NotModified(r, tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return a.send(w, http.StatusOK, entry.Value)
}

func (a *API) createProduct(w http.ResponseWriter, r *http.Request, _ session) error {
	if faults := noParameters(r.URL.RawQuery); faults != nil {
		return badRequest(faults)
	}
	fields, err := readObject(w, r, a.timeout, "Accept-Post", "application/json")
	if err != nil {
		return err
	}
	product, err := newProduct(fields)
	if err != nil {
		return err
	}
	ctx := r.Context()
	token, err := a.node.Write(ctx, func(tx *node.Tx) error {
		return insertProduct(ctx, tx, &product)
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/products/%d", product.ID))
	return a.answerWrite(w, r, http.StatusCreated, product, token)
}

func (a *API) patchProduct(w http.ResponseWriter, r *http.Request, s session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	fields, err := readObject(w, r, a.timeout, "Accept-Patch", "application/merge-patch+json", "application/json")
	if err != nil {
		return err
	}
	if len(fields) == 0 {
		return invalidBody([]fault{{Detail: "nothing to change: give at least one field"}})
	}
	// Faults of the fields themselves are told without asking the database.
	if err := (&Product{}).apply(fields, nil); err != nil {
		return err
	}
	revision, err := a.precondition(r, s, id)
	if err != nil {
		return err
	}
	ctx := r.Context()
	var product Product
	token, err := a.node.Write(ctx, func(tx *node.Tx) error {
		p, err := lockProduct(ctx, tx, id, revision)
		if err != nil {
			return err
		}
		if err := p.apply(fields, nil); err != nil {
			return err
		}
		product = p
		return updateProduct(ctx, tx, &product)
	})
	if err != nil {
		return err
	}
	return a.answerWrite(w, r, http.StatusOK, product, token)
}

func (a *API) deleteProduct(w http.ResponseWriter, r *http.Request, s session) error {
	id, err := identify(r)
	if err != nil {
		return err
	}
	revision, err := a.precondition(r, s, id)
	if err != nil {
		return err
	}
	ctx := r.Context()
	token, err := a.node.Write(ctx, func(tx *node.Tx) error {
		if _, err := lockProduct(ctx, tx, id, revision); err != nil {
			return err
		}
		return deleteProduct(ctx, tx, id)
	})
	if err != nil {
		return err
	}
	nodehttp.NoteToken(r.Context(), token)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// precondition checks If-Match against the product as it is now. It returns the revision that the write must
// find, 0 if any will do: ETags are versions of representations, which the database does not know.
func (a *API) precondition(r *http.Request, s session, id string) (revision int64, err error) {
	lines := r.Header.Values("If-Match")
	if len(lines) == 0 {
		return 0, nil
	}
	list, ok := nodehttp.ParseETags(lines)
	if !ok {
		return 0, badRequest([]fault{{Header: "If-Match", Detail: `want * or a list of ETags such as "0123456789abcdef"`}})
	}
	entry, err := a.products.Lookup(r.Context(), id, node.Within(0), node.AtLeast(s.Token()))
	if errors.Is(err, node.ErrNotFound) {
		return 0, notFound("There is nothing with this id.")
	}
	if err != nil {
		return 0, err
	}
	if !list.MatchStrongly(nodehttp.ETag(entry.Version)) {
		return 0, preconditionFailed()
	}
	if list.Any {
		return 0, nil
	}
	return entry.Value.Revision, nil
}

// answerWrite sends the product as the transaction left it. Reading it back gives its ETag and fills the cache;
// when that fails, or somebody has changed the product since, the write has succeeded all the same.
func (a *API) answerWrite(w http.ResponseWriter, r *http.Request, status int, product Product, token node.Token) error {
	nodehttp.NoteToken(r.Context(), token)
	w.Header().Set("Cache-Control", "no-store")
	entry, err := a.products.Lookup(r.Context(), fmt.Sprint(product.ID), node.AtLeast(token))
	if err == nil && entry.Value.Revision == product.Revision {
		w.Header().Set("ETag", nodehttp.ETag(entry.Version))
	}
	return a.send(w, status, product)
}
