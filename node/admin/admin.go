package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/freshet-cache/freshet/node"
)

// Bounds of a request.
const (
	// MaxBody is the largest body, in bytes.
	MaxBody = 1 << 20
	// Timeout is how long an answer may take, profiles excepted.
	Timeout = 15 * time.Second
	// MinToken is the shortest token, in bytes.
	MinToken = 32
)

// Config describes the API. The zero Config serves what only reads, and no metrics.
type Config struct {
	// Token is what requests that change something must bring as "Authorization: Bearer TOKEN", at least
	// [MinToken] bytes. "" = TokenFile's.
	Token string
	// TokenFile is the path of a file with the token, without the space around it. It is read anew for each request
	// that needs one, so that the token can be changed. A file that cannot be read closes these routes. "" = none.
	TokenFile string
	// ClientCertificates: a request over TLS with a client certificate that the server has verified may do what the
	// token allows. The server's tls.Config says which those are.
	ClientCertificates bool
	// Gatherer is what /metrics shows; nil = there is no /metrics.
	Gatherer prometheus.Gatherer
	// Logger gets a line for every change, and for failures of the service; nil = slog.Default().
	Logger *slog.Logger
}

// Validate reports all problems at once, each naming its field.
func (c Config) Validate() error {
	var problems []error
	if c.Token != "" && c.TokenFile != "" {
		problems = append(problems, errors.New("admin: Config.Token and Config.TokenFile are both set; want one of them"))
	}
	if c.Token != "" {
		if err := checkToken(c.Token); err != nil {
			problems = append(problems, fmt.Errorf("admin: Config.Token: %w", err))
		}
	}
	if c.TokenFile != "" {
		if _, err := readToken(c.TokenFile); err != nil {
			problems = append(problems, fmt.Errorf("admin: Config.TokenFile: %w", err))
		}
	}
	return errors.Join(problems...)
}

// checkToken never repeats the token.
func checkToken(token string) error {
	if len(token) < MinToken {
		return fmt.Errorf("a token of %d bytes; want at least %d", len(token), MinToken)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("a token with spaces, control or non-ASCII characters; want printable ASCII, such as of `openssl rand -hex 32`")
	}
	return nil
}

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if err := checkToken(token); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return token, nil
}

// API is the http.Handler. It is safe for concurrent use.
type API struct {
	config   Config
	log      *slog.Logger
	routes   *http.ServeMux
	node     atomic.Pointer[node.Node] // nil until Use
	started  atomic.Bool
	draining atomic.Bool
}

// New makes the API, which answers before there is a node. It starts nothing.
func New(c Config) (*API, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	a := &API{config: c, log: c.Logger, routes: http.NewServeMux()}
	if a.log == nil {
		a.log = slog.Default()
	}
	for path, methods := range a.paths() {
		a.routes.Handle(path, a.serve(methods))
	}
	a.routes.Handle("/", a.serve(nil))
	return a, nil
}

// Use has the API show and steer n, which stays the caller's. Call it once, as soon as the node is open.
func (a *API) Use(n *node.Node) { a.node.Store(n) }

// Started says that the service is ready for its first request.
func (a *API) Started() { a.started.Store(true) }

// Draining says that the service takes no new requests soon.
func (a *API) Draining() { a.draining.Store(true) }

// ServeHTTP implements [http.Handler].
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.routes.ServeHTTP(w, r) }

// operation is what one method of a path does. It returns what becomes a problem, before it has written.
type operation struct {
	do func(w http.ResponseWriter, r *http.Request) error
	// guarded: it asks for a credential.
	guarded bool
	// long: it may take longer than Timeout.
	long bool
}

// guard is the operation for who has a credential.
func (o operation) guard() operation {
	o.guarded = true
	return o
}

// methods are the operations of a path, a method -> what it does.
type methods map[string]operation

// paths are the patterns of all routes, as http.ServeMux takes them.
func (a *API) paths() map[string]methods {
	all := map[string]methods{
		"/admin/v1/openapi.yaml": {"GET": {do: a.describe}},
	}
	for _, some := range []map[string]methods{
		a.probePaths(), a.statsPaths(), a.seePaths(), a.explainPaths(), a.profilePaths(),
		a.generationPaths(), a.invalidationPaths(), a.batchPaths(), a.queuePaths(), a.cleanupPaths(), a.verifyPaths(),
	} {
		maps.Copy(all, some)
	}
	if a.config.Gatherer != nil {
		metrics := promhttp.HandlerFor(a.config.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
		all["/metrics"] = methods{"GET": {do: func(w http.ResponseWriter, r *http.Request) error {
			metrics.ServeHTTP(w, r)
			return nil
		}}}
	}
	return all
}

// serve answers the requests for one path: it chooses the operation, asks for the credential, bounds its time, and
// turns what goes wrong into a problem. No methods: the path does not exist.
func (a *API) serve(m methods) http.Handler {
	allow := allowed(m)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer a.recoverPanic(w, r)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		op, ok := m[method]
		switch {
		case m == nil:
			a.fail(w, r, notFound("There is no such path: /admin/v1/openapi.yaml lists them."))
			return
		case !ok:
			a.fail(w, r, newProblem(http.StatusMethodNotAllowed, "method-not-allowed", "Method not allowed",
				"This path takes "+allow+".").with("Allow", allow))
			return
		}
		if op.guarded {
			if p := a.forbidden(r); p != nil {
				a.fail(w, r, p)
				return
			}
		}
		if !op.long {
			ctx, cancel := context.WithTimeout(r.Context(), Timeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		if err := op.do(w, r); err != nil {
			a.fail(w, r, failure(r.Context(), err))
		}
	})
}

// allowed lists the methods in the form of the header Allow.
func allowed(m methods) string {
	names := slices.Collect(maps.Keys(m))
	if _, ok := m[http.MethodGet]; ok {
		names = append(names, http.MethodHead)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// forbidden says why the request may not do what asks for a credential; nil = it may.
func (a *API) forbidden(r *http.Request) *problem {
	if a.config.ClientCertificates && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return nil
	}
	token := a.config.Token
	if a.config.TokenFile != "" {
		var err error
		if token, err = readToken(a.config.TokenFile); err != nil {
			a.log.Error("admin: the token cannot be read; what changes anything is closed", "error", err)
		}
	}
	if token == "" && !a.config.ClientCertificates {
		return newProblem(http.StatusForbidden, "closed", "Closed",
			"This replica has neither an admin token nor client certificates configured, so nothing can be changed here.")
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	// Hashes are of one length, so that the time of the comparison does not tell that of the token.
	want, got := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given))
	if ok && token != "" && subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
		return nil
	}
	return newProblem(http.StatusUnauthorized, "unauthorized", "Unauthorized",
		"This asks for a credential: the admin token in Authorization: Bearer, or a client certificate.").
		with("WWW-Authenticate", `Bearer realm="freshet admin"`)
}

// opened is the node, or the problem that there is none yet.
func (a *API) opened() (*node.Node, error) {
	if n := a.node.Load(); n != nil {
		return n, nil
	}
	return nil, newProblem(http.StatusServiceUnavailable, "starting", "Starting", "The node is not open yet.").with("Retry-After", "1")
}

func (a *API) fail(w http.ResponseWriter, r *http.Request, p *problem) {
	if p.Status >= http.StatusInternalServerError {
		a.log.LogAttrs(r.Context(), slog.LevelWarn, "admin: request failed", slog.String("method", r.Method),
			slog.String("route", r.Pattern), slog.Int("status", p.Status), slog.String("error", p.loggable()))
	}
	p.write(w)
}

// recoverPanic answers a request whose operation panicked. Operations write last, so the answer has not begun.
func (a *API) recoverPanic(w http.ResponseWriter, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(cause)
	}
	// What it panicked with may name ids or values.
	a.log.LogAttrs(r.Context(), slog.LevelError, "admin: a request panicked", slog.String("route", r.Pattern),
		slog.String("panic", fmt.Sprintf("%T", cause)), slog.String("stack", string(debug.Stack())))
	a.fail(w, r, failure(context.WithoutCancel(r.Context()), errPanicked))
}

//go:embed openapi.yaml
var description []byte

// describe serves the description of the API.
func (a *API) describe(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(description) // a client that has gone needs no answer
	return nil
}
