package admin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/node/admin"
)

// tokenOf is the token that an answer brought.
func tokenOf(t *testing.T, text string) node.Token {
	t.Helper()
	token, err := coherence.ParseToken(text)
	if err != nil || token.IsZero() {
		t.Fatalf("the token %q: %v", text, err)
	}
	return token
}

// Every way of invalidation, over HTTP to one replica, seen at another.
func TestInvalidations(t *testing.T) {
	s := newSite(t)
	a, b := s.pair(nil)
	ctx := t.Context()
	s.exec(`alter table things disable trigger user`) // from now on it is the API alone that tells
	s.exec(`select freshet.unwatch('things')`)
	invalidate := func(v admin.Invalidation) node.Token {
		t.Helper()
		is, err := a.client.Invalidate(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		return tokenOf(t, is.Token)
	}
	read := func(id string, options ...node.ReadOption) string {
		t.Helper()
		v, err := b.things.Get(ctx, id, options...)
		if err != nil {
			t.Fatal(err)
		}
		return v.Name
	}
	s.until("the end of the watch is known", func() bool {
		e, err := b.things.Lookup(ctx, "thing-1")
		return err == nil && e.Fresh
	})
	for what, v := range map[string]admin.Invalidation{
		"ids":  {Namespace: "thing", IDs: []string{"thing-1", "thing-2"}},
		"view": {Namespace: "thing", IDs: []string{"thing-1"}, View: "detail"},
		"tags": {Tags: []string{"kind:kind-1"}},
		"all":  {Namespace: "thing", All: true},
	} {
		read("thing-1")
		s.exec(`update things set name = $1 where id = 'thing-1'`, what)
		if is := read("thing-1"); is == what {
			t.Errorf("%s: without an invalidation the change is seen", what)
		}
		if is := read("thing-1", node.AtLeast(invalidate(v))); is != what {
			t.Errorf("%s: after it the thing is still %q", what, is)
		}
	}

	// Later: after a delay, in a batch, with a grace.
	read("thing-3")
	s.exec(`update things set name = 'after' where id = 'thing-3'`)
	began := time.Now()
	invalidate(admin.Invalidation{Namespace: "thing", IDs: []string{"thing-3"}, After: 0.2})
	s.until("the delay is over", func() bool { return read("thing-3") == "after" })
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("a delay of 200 ms took %v", took)
	}
	const batch = "price list/2024 100%.." // whatever a name may have
	read("thing-4")
	read("thing-5")
	s.exec(`update things set name = 'batched' where id in ('thing-4', 'thing-5')`)
	invalidate(admin.Invalidation{Namespace: "thing", IDs: []string{"thing-4"}, Batch: batch, After: 3600})
	invalidate(admin.Invalidation{Tags: []string{"kind:kind-5"}, Batch: batch})
	if batches, err := b.client.Batches(ctx); err != nil || len(batches) != 1 || batches[0].Name != batch || batches[0].Entries != 2 || batches[0].Due.IsZero() {
		t.Errorf("batches: %+v, %v", batches, err)
	}
	if read("thing-4") == "batched" || read("thing-5") == "batched" {
		t.Error("a batch counts before it is run")
	}
	if ran, err := b.client.RunBatch(ctx, batch); err != nil || ran != 2 {
		t.Errorf("ran %d, %v", ran, err)
	}
	if read("thing-4") != "batched" || read("thing-5") != "batched" {
		t.Error("a batch that was run does not count")
	}
	for _, name := range []string{batch, ".", "..", "a/../b", "ümlaut", " "} {
		if _, err := a.client.RunBatch(ctx, name); !isProblem(err, http.StatusNotFound) {
			t.Errorf("a run of %q, which is not there: %v", name, err)
		}
		if _, err := a.client.DropBatch(ctx, name); !isProblem(err, http.StatusNotFound) {
			t.Errorf("a drop of %q, which is not there: %v", name, err)
		}
		invalidate(admin.Invalidation{Namespace: "thing", IDs: []string{"thing-6"}, Batch: name})
		if dropped, err := a.client.DropBatch(ctx, name); err != nil || dropped != 1 {
			t.Errorf("dropped %d of %q, %v", dropped, name, err)
		}
	}
	if _, err := a.client.RunBatch(ctx, ""); err == nil {
		t.Error("a batch without a name was run")
	}
	read("thing-7")
	s.exec(`update things set name = 'graced' where id = 'thing-7'`)
	graced := invalidate(admin.Invalidation{Namespace: "thing", IDs: []string{"thing-7"}, Grace: 60})
	if read("thing-7", node.AtLeast(graced)) != "graced" {
		t.Error("with the token the value from before a grace is served")
	}
}

// What does not fit together is refused, with a pointer to each part.
func TestInvalidationsThatAreRefused(t *testing.T) {
	s := newSite(t)
	r := s.open("a", nil)
	long := strings.Repeat("x", 513)
	for _, c := range []struct {
		v    admin.Invalidation
		want []string
	}{
		{admin.Invalidation{Namespace: "thing"}, []string{"has 0 of ids, tags and all: true"}},
		{admin.Invalidation{Namespace: "thing", IDs: []string{"x"}, All: true}, []string{"has 2 of"}},
		{admin.Invalidation{IDs: []string{"x"}}, []string{`/namespace "" has no cache here; want one of thing`}},
		{admin.Invalidation{Namespace: "things", All: true}, []string{`/namespace "things" has no cache here; want one of thing`}},
		{admin.Invalidation{Namespace: "thing", Tags: []string{"x"}}, []string{"/namespace is given with tags"}},
		{admin.Invalidation{Namespace: "thing", All: true, View: "detail"}, []string{"/view is given without ids"}},
		{admin.Invalidation{Namespace: "thing", IDs: []string{"x"}, View: "list"}, []string{`/view "list" is no view`}},
		{admin.Invalidation{Namespace: "thing", IDs: []string{"x", "", long, "a\x00"}}, []string{"/ids/1 is empty", "/ids/2 has 513 bytes", "/ids/3 holds the character NUL"}},
		{
			admin.Invalidation{Namespace: "thing", All: true, After: 366 * 24 * 3600, Grace: 0.0001, Batch: strings.Repeat("ü", 201)},
			[]string{"/after_seconds is 3.16224e+07; want 0.001 to 3.1536e+07", "/grace_seconds is 0.0001", "/batch has 201 characters; want 0 to 200"},
		},
	} {
		_, err := r.client.Invalidate(t.Context(), c.v)
		for _, want := range c.want {
			if !isProblem(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want 422 with %q", err, want)
			}
		}
	}
	// As many as there may be, and no more than are waited for at once.
	many := slices.Repeat([]string{"x"}, node.MaxIDs)
	for i := range many {
		many[i] = strings.Repeat("x", i%90) + big.NewInt(int64(i)).String()
	}
	if _, err := r.client.Invalidate(t.Context(), admin.Invalidation{Namespace: "thing", IDs: many}); err != nil {
		t.Fatal(err)
	}
	s.exec(`insert into freshet.scheduled (batch, kind, namespace, id, grace) select 'large', 'e', 'thing', n::text, 0 from generate_series(1, 90001) n`)
	if _, err := r.client.Invalidate(t.Context(), admin.Invalidation{Namespace: "thing", IDs: many, Batch: "large"}); !isProblem(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), "run or drop batches") {
		t.Errorf("beyond what may wait: %v", err)
	}
}

// The queue: what waits, and what Postgres would not have, until it does.
func TestQueue(t *testing.T) {
	s := newSite(t)
	s.exec(`alter table things add constraint polite check (name <> 'rude')`)
	a, b := s.pair(func(c *node.Config, cache *node.CacheConfig[Thing]) {
		behind(c, cache)
		c.WriteBehind = node.WriteBehind{MaxAttempts: 1, MaxBytes: 1 << 20}
	})
	ctx := t.Context()
	for i, name := range []string{"good", "rude", "better", "rude", "rude"} {
		id := "thing-" + string(rune('1'+i))
		if _, err := a.things.PutLater(ctx, id, Thing{ID: id, Name: name, Kind: "kind-1"}); err != nil {
			t.Fatal(err)
		}
	}
	var q admin.Queue
	s.until("all are settled", func() bool {
		var err error
		if q, err = b.client.Queue(ctx); err != nil {
			t.Fatal(err)
		}
		return len(q.Namespaces) == 1 && q.Namespaces[0].Applied == 2 && q.Namespaces[0].Dead == 3 && q.Namespaces[0].Pending == 0
	})
	if q.DeadLetters == nil || *q.DeadLetters != 3 || len(q.Replicas) != 2 || q.Replicas[1].Replica != "b" || q.Replicas[1].Answer == nil {
		t.Errorf("the queue: %+v", q)
	}
	if v := q.Stream; v == nil || v.MaxMessages != 10_000 || v.MaxBytes != 1<<20 || len(v.Namespaces) != 1 || v.Namespaces[0].Namespace != "thing" {
		t.Errorf("the stream: %+v, %s", v, q.StreamError)
	}

	letters, err := b.client.DeadLetters(ctx, 0, 2)
	if err != nil || len(letters) != 2 || letters[0].Namespace != "thing" || letters[0].Value == nil || !strings.Contains(*letters[0].Value, "rude") || !strings.Contains(letters[0].Error, "polite") {
		t.Fatalf("dead letters: %+v, %v", letters, err)
	}
	if more, err := a.client.DeadLetters(ctx, letters[1].Letter, 0); err != nil || len(more) != 1 {
		t.Errorf("those after: %+v, %v", more, err)
	}
	if err := a.client.RetryDeadLetter(ctx, letters[0].Letter); !isProblem(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), "polite") {
		t.Errorf("a retry that is refused: %v", err)
	}
	if err := a.client.DropDeadLetter(ctx, letters[0].Letter); err != nil {
		t.Error(err)
	}
	s.exec(`alter table things drop constraint polite`)
	if err := b.client.RetryDeadLetter(ctx, letters[1].Letter); err != nil {
		t.Error(err)
	}
	if v, err := b.things.Get(ctx, letters[1].ID); err != nil || v.Name != "rude" {
		t.Errorf("what was written after all is %+v, %v", v, err)
	}
	for _, letter := range letters {
		if err := a.client.RetryDeadLetter(ctx, letter.Letter); !isProblem(err, http.StatusNotFound) {
			t.Errorf("a retry of what is gone: %v", err)
		}
		if err := a.client.DropDeadLetter(ctx, letter.Letter); !isProblem(err, http.StatusNotFound) {
			t.Errorf("a drop of what is gone: %v", err)
		}
	}
	if q, err := a.client.Queue(ctx); err != nil || *q.DeadLetters != 1 {
		t.Errorf("the queue at the end: %+v, %v", q, err)
	}
}

// An application that writes nothing behind has a queue with nothing in it.
func TestNoQueue(t *testing.T) {
	s := newSite(t)
	r := s.open("a", nil)
	if q, err := r.client.Queue(t.Context()); err != nil || q.Stream != nil || q.StreamError != "" || len(q.Namespaces) != 0 || len(q.Replicas) != 1 || *q.DeadLetters != 0 {
		t.Errorf("the queue: %+v, %v", q, err)
	}
	s.exec(`insert into freshet.dead_letters (app, namespace, id, epoch, seq, value, error, attempts, put_at) values ($1, 'thing', 'x', 0, 1, '{}', 'x', 1, now())`, s.app)
	letters, err := r.client.DeadLetters(t.Context(), 0, 0)
	if err != nil || len(letters) != 1 {
		t.Fatalf("dead letters: %+v, %v", letters, err)
	}
	if err := r.client.RetryDeadLetter(t.Context(), letters[0].Letter); !isProblem(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), "no cache") {
		t.Errorf("a retry without a cache: %v", err)
	}
}

// A clean-up in the background: told of, one at a time, stopped by its operator or by the end of the node.
func TestCleanups(t *testing.T) {
	s := newSite(t)
	a, b := s.pair(nil)
	ctx := t.Context()
	for n := range 40 {
		if _, err := a.things.Get(ctx, fmt.Sprint("thing-", 1+n)); err != nil {
			t.Fatal(err)
		}
	}
	if is, err := a.client.CleanStatus(ctx); err != nil || is != (node.CleanStatus{}) {
		t.Errorf("before the first: %+v, %v", is, err)
	}
	if _, err := a.client.StopClean(ctx); !isProblem(err, http.StatusNotFound) {
		t.Errorf("stopped what does not run: %v", err)
	}
	s.exec(`alter table things disable trigger user`)
	s.exec(`select freshet.unwatch('things')`)
	s.exec(`update things set name = 'new'`)
	began, err := a.client.StartClean(ctx, admin.Cleanup{Namespace: "thing", Prefix: "thing-1", Invalidate: true, Rate: 100_000})
	if err != nil || !began.SomeIDs || !began.Invalidate || began.Namespace != "thing" || began.Began.IsZero() {
		t.Fatalf("started: %+v, %v", began, err)
	}
	var is node.CleanStatus
	ended := func() bool {
		if is, err = a.client.CleanStatus(ctx); err != nil {
			t.Fatal(err)
		}
		return !is.Running
	}
	s.until("it is done", ended)
	const picked = 11 // 1 and 10 to 19
	if is.Removed != picked || is.Invalidated != picked || is.Scanned < 40 || is.Error != "" || is.Ended.Before(is.Began) {
		t.Errorf("it did %+v; want %d", is, picked)
	}
	if v, err := a.things.Get(ctx, "thing-11"); err != nil || v.Name != "new" {
		t.Errorf("what was said to have changed: %+v, %v", v, err)
	}

	// A slow one, which is stopped, and another, which ends with its node.
	if _, err := a.client.StartClean(ctx, admin.Cleanup{Rate: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.StartClean(ctx, admin.Cleanup{}); !isProblem(err, http.StatusConflict) {
		t.Errorf("a second one: %v", err)
	}
	if is, err := a.client.StopClean(ctx); err != nil || is.Running || !strings.Contains(is.Error, "stopped") {
		t.Errorf("stopped: %+v, %v", is, err)
	}
	if _, err := b.client.StartClean(ctx, admin.Cleanup{Rate: 1}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if is := b.CleanStatus(); is.Running || is.Error == "" {
		t.Errorf("after its node: %+v", is)
	}
	if _, err := b.client.StartClean(ctx, admin.Cleanup{}); !isProblem(err, http.StatusServiceUnavailable) {
		t.Errorf("on a closed node: %v", err)
	}
	for want, v := range map[string]admin.Cleanup{
		"/namespace is empty":            {Prefix: "x"},
		"/namespace is no name":          {Namespace: "Thing"},
		"/pattern is given with prefix":  {Namespace: "thing", Prefix: "x", Pattern: "y"},
		"/pattern cannot be":             {Namespace: "thing", Pattern: "*********"},
		"/prefix has 600 characters":     {Namespace: "thing", Prefix: strings.Repeat("x", 600)},
		"/rate is -1; want 1 to 1000000": {Rate: -1},
	} {
		if _, err := a.client.StartClean(ctx, v); !isProblem(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", v, err, want)
		}
	}
}

// authority signs client certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// client is a certificate of the name.
func (a *authority) client(name string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: []string{"Shop"}}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Client certificates that the server has verified stand for the token, and their subject for who it was.
func TestClientCertificates(t *testing.T) {
	s := newSite(t)
	r := s.open("a", nil)
	ours, others := newAuthority(t), newAuthority(t)
	serve := func(c admin.Config, auth tls.ClientAuthType) *httptest.Server {
		t.Helper()
		c.Logger = slog.New(slog.DiscardHandler)
		api, err := admin.New(c)
		if err != nil {
			t.Fatal(err)
		}
		api.Use(r.Node)
		server := httptest.NewUnstartedServer(api)
		server.TLS = &tls.Config{ClientAuth: auth, ClientCAs: ours.pool, MinVersion: tls.VersionTLS13}
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		t.Cleanup(server.Close)
		return server
	}
	next := func(server *httptest.Server, token string, certificates ...tls.Certificate) error {
		transport := server.Client().Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.Certificates = certificates
		defer transport.CloseIdleConnections()
		c := admin.Client{URL: server.URL, Token: token, HTTP: &http.Client{Transport: conforming{t, transport}}}
		_, err := c.NextGeneration(context.WithoutCancel(t.Context()), "thing", node.GenerationChange{Why: "a certificate"})
		return err
	}
	verifying := serve(admin.Config{ClientCertificates: true}, tls.VerifyClientCertIfGiven)
	asking := serve(admin.Config{ClientCertificates: true}, tls.RequestClientCert) // it looks at none
	both := serve(admin.Config{ClientCertificates: true, Token: token}, tls.VerifyClientCertIfGiven)
	byToken := serve(admin.Config{Token: token}, tls.VerifyClientCertIfGiven)

	if err := next(verifying, "", ours.client("ann")); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if err := next(both, "", ours.client("bob")); err != nil {
		t.Errorf("with a certificate where a token does, too: %v", err)
	}
	if err := next(both, token); err != nil {
		t.Errorf("with the token where a certificate does, too: %v", err)
	}
	for what, err := range map[string]error{
		"without a certificate":                          next(verifying, ""),
		"with a token where there is none":               next(verifying, token),
		"with a certificate that nobody verified":        next(asking, "", ours.client("eve")),
		"without either":                                 next(both, ""),
		"with a certificate where only the token counts": next(byToken, "", ours.client("ann")),
	} {
		if !isProblem(err, http.StatusUnauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := next(verifying, "", others.client("eve")); err == nil {
		t.Error("another authority's certificate was taken")
	}
	events, err := r.client.GenerationHistory(t.Context(), "thing", 0)
	if err != nil || len(events) != 3 || events[2].By != "CN=ann,O=Shop" || events[1].By != "CN=bob,O=Shop" || events[0].By != "admin token" {
		t.Errorf("the history: %+v, %v", events, err)
	}
}

// The types of problems are addresses of headings in docs/admin.md.
func TestProblemsAreDocumented(t *testing.T) {
	document, err := os.ReadFile("../../docs/admin.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	made := regexp.MustCompile(`newProblem\([^,"]+, "([a-z-]+)"`)
	names := map[string]bool{}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		source, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range made.FindAllSubmatch(source, -1) {
			names[string(found[1])] = true
		}
	}
	if len(names) < 10 {
		t.Fatalf("only these are found: %v", names)
	}
	for name := range names {
		if !strings.Contains(string(document), "\n### "+name+"\n") {
			t.Errorf("docs/admin.md does not describe the problem %s", name)
		}
	}
}
