package balance_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/freshet-cache/freshet/internal/balance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a small real HTTP server in the place of a replica.
type server struct {
	balance.Target
	api, admin *http.Server
	served     sync.WaitGroup
	ready      atomic.Bool
	requests   atomic.Int64
}

func start(t *testing.T, name string, handle http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.ready.Store(true)
	s.api = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		w.Header().Set("Freshet-Replica", name)
		handle(w, r)
	})}
	s.admin = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	s.Target = balance.Target{Name: name, Address: s.listen(t, s.api), Admin: s.listen(t, s.admin)}
	t.Cleanup(s.kill)
	return s
}

func (s *server) listen(t *testing.T, h *http.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.served.Go(func() { h.Serve(l) }) //nolint:errcheck // ends by Close
	return l.Addr().String()
}

// kill drops the listeners and every connection at once, as SIGKILL does.
func (s *server) kill() {
	s.api.Close()   // it is killed
	s.admin.Close() // it is killed
	s.served.Wait()
}

func hello(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }

// front is the balancer behind a real server, and a client of it.
type front struct {
	*balance.Balancer
	url    string
	client *http.Client
}

func newFront(t *testing.T, c balance.Config, servers ...*server) *front {
	t.Helper()
	b := balance.New(c)
	for _, s := range servers {
		if err := b.Set(s.Target); err != nil {
			t.Fatal(err)
		}
	}
	h := httptest.NewServer(b)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		h.Close()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return &front{b, h.URL, client}
}

func (f *front) do(t *testing.T, method, body string) (int, http.Header, string) {
	t.Helper()
	code, header, text, err := f.try(t, method, body)
	if err != nil {
		t.Fatal(err)
	}
	return code, header, text
}

// try is do with an answer that may break off.
func (f *front) try(t *testing.T, method, body string) (int, http.Header, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.url+"/products/1?view=x", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body = nil
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(text), err
}

func (f *front) ready(name string) bool {
	for _, s := range f.Stats().Targets {
		if s.Name == name {
			return s.Ready
		}
	}
	return false
}

// eventually waits for the condition, which some other goroutine brings about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 10 s: %s", what)
		case <-tick.C:
		}
	}
}

func TestSpreadsAndPassesThrough(t *testing.T) {
	a, b, c := start(t, "a", hello), start(t, "b", hello), start(t, "c", hello)
	f := newFront(t, balance.Config{}, a, b, c)
	for range 300 {
		code, header, text := f.do(t, "GET", "")
		if code != 200 || text != "hello" || header.Get("Freshet-Replica") == "" {
			t.Fatalf("got %d %q %v", code, text, header)
		}
	}
	for _, s := range []*server{a, b, c} {
		if n := s.requests.Load(); n < 50 {
			t.Errorf("%s served %d of 300 requests, want about 100", s.Name, n)
		}
	}
}

func TestPrefersTheReplicaWithFewestInFlight(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	slow := start(t, "slow", func(w http.ResponseWriter, r *http.Request) { <-release; hello(w, r) })
	quick := start(t, "quick", hello)
	f := newFront(t, balance.Config{}, slow, quick)
	t.Cleanup(func() { once.Do(func() { close(release) }) })

	// Requests one after the other: as soon as one hangs in slow, all others go to quick.
	var hung sync.WaitGroup
	for slow.requests.Load() == 0 {
		var answered atomic.Bool
		hung.Go(func() { f.do(t, "GET", ""); answered.Store(true) })
		eventually(t, "answered or hung", func() bool { return answered.Load() || slow.requests.Load() > 0 })
	}
	for range 50 {
		if _, header, _ := f.do(t, "GET", ""); header.Get("Freshet-Replica") != "quick" {
			t.Fatal("a request went to the replica that has one in flight")
		}
	}
	once.Do(func() { close(release) })
	hung.Wait()
}

func TestWritesCarryTheirBodyOnce(t *testing.T) {
	a := start(t, "a", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, body)
	})
	f := newFront(t, balance.Config{}, a)
	if _, _, text := f.do(t, "PATCH", "price=1"); text != "PATCH /products/1?view=x price=1" {
		t.Fatalf("the replica saw %q", text)
	}
}

// A replica killed under load: no reader notices; writers may get 502 or 503 with a problem document, or the
// beginning of an answer, which is not held back.
func TestKilledReplicaFailsNoRead(t *testing.T) {
	body := strings.Repeat("x", 40<<10)
	answer := func(w http.ResponseWriter, r *http.Request) {
		// Two parts, so that a kill can hit between them.
		fmt.Fprint(w, body[:len(body)/2])
		w.(http.Flusher).Flush()
		fmt.Fprint(w, body[len(body)/2:])
	}
	for round := range 5 {
		a, b, c := start(t, "a", answer), start(t, "b", answer), start(t, "c", answer)
		f := newFront(t, balance.Config{}, a, b, c)
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		var reads, writes atomic.Int64
		for i := range 8 {
			load.Go(func() {
				for ctx.Err() == nil {
					if i == 0 {
						code, header, text, err := f.try(t, "PATCH", "x")
						if code == 0 || err != nil && code != 200 {
							t.Errorf("a write got %d, %v", code, err)
						}
						if code != 200 && (header.Get("Content-Type") != "application/problem+json" || !json.Valid([]byte(text))) {
							t.Errorf("a write got %d %v", code, header)
						}
						writes.Add(1)
						continue
					}
					if code, _, text := f.do(t, "GET", ""); code != 200 || text != body {
						t.Errorf("round %d: a read got %d and %d bytes", round, code, len(text))
					}
					reads.Add(1)
				}
			})
		}
		eventually(t, "load", func() bool { return reads.Load() > 200 })
		a.kill()
		seen := reads.Load()
		eventually(t, "load after the kill", func() bool { return reads.Load() > seen+200 && writes.Load() > 10 })
		cancel()
		load.Wait()
		if f.ready("a") {
			t.Error("the killed replica counts as ready")
		}
	}
}

func TestDrainingReplicaGetsNothingNew(t *testing.T) {
	a, b := start(t, "a", hello), start(t, "b", hello)
	f := newFront(t, balance.Config{CheckInterval: 5 * time.Millisecond}, a, b)
	a.ready.Store(false)
	eventually(t, "a is taken out", func() bool { return !f.ready("a") })
	before := a.requests.Load()
	for range 20 {
		f.do(t, "GET", "")
	}
	if n := a.requests.Load() - before; n != 0 {
		t.Errorf("the draining replica got %d requests", n)
	}
	a.ready.Store(true)
	eventually(t, "a is back", func() bool { return f.ready("a") })
}

func TestUnreadyReplicasAreBetterThanNone(t *testing.T) {
	a := start(t, "a", hello)
	a.ready.Store(false)
	f := newFront(t, balance.Config{CheckInterval: 5 * time.Millisecond}, a)
	eventually(t, "a is out", func() bool { return !f.ready("a") })
	if code, _, _ := f.do(t, "GET", ""); code != 200 {
		t.Fatalf("got %d", code)
	}
}

func TestNoReplica(t *testing.T) {
	a := start(t, "a", hello)
	f := newFront(t, balance.Config{}, a)
	a.kill()
	for _, method := range []string{"GET", "PATCH"} {
		code, header, text := f.do(t, method, "")
		if code != 503 || header.Get("Retry-After") == "" || !strings.Contains(text, "no replica can be reached") {
			t.Errorf("%s got %d %v %s", method, code, header, text)
		}
	}
	f.Remove("a")
	if code, _, _ := f.do(t, "GET", ""); code != 503 {
		t.Errorf("without targets: got %d", code)
	}
}

func TestReplacedTarget(t *testing.T) {
	old, young := start(t, "a", hello), start(t, "a", hello)
	f := newFront(t, balance.Config{}, old)
	f.do(t, "GET", "")
	if err := f.Set(young.Target); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		f.do(t, "GET", "")
	}
	if old.requests.Load() != 1 || young.requests.Load() != 10 {
		t.Errorf("old served %d, young %d", old.requests.Load(), young.requests.Load())
	}
	if err := f.Set(balance.Target{Name: "b"}); err == nil {
		t.Error("a target without addresses was accepted")
	}
}

func TestInFlightIsBounded(t *testing.T) {
	release := make(chan struct{})
	a := start(t, "a", func(w http.ResponseWriter, r *http.Request) { <-release; hello(w, r) })
	f := newFront(t, balance.Config{MaxInFlight: 2}, a)
	var two sync.WaitGroup
	for range 2 {
		two.Go(func() {
			if code, _, _ := f.do(t, "GET", ""); code != 200 {
				t.Errorf("an admitted request got %d", code)
			}
		})
	}
	eventually(t, "two in flight", func() bool { return a.requests.Load() == 2 })
	if code, _, text := f.do(t, "GET", ""); code != 503 || !strings.Contains(text, "too many requests") {
		t.Errorf("the third got %d %s", code, text)
	}
	close(release)
	two.Wait()
}

// An answer longer than the buffer streams: its first bytes arrive before its last are made.
func TestLongAnswersStream(t *testing.T) {
	release := make(chan struct{})
	a := start(t, "a", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", 4096))
		w.(http.Flusher).Flush()
		<-release
		fmt.Fprint(w, "end")
	})
	f := newFront(t, balance.Config{Buffer: 1024}, a)
	resp, err := f.client.Get(f.url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	close(release)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(rest), "end") || len(rest) != 4096-1024+3 {
		t.Fatalf("%d bytes, %v", len(rest), err)
	}
}

func BenchmarkProxy(b *testing.B) {
	h := httptest.NewServer(http.HandlerFunc(hello))
	defer h.Close()
	f := balance.New(balance.Config{CheckInterval: time.Hour})
	defer func() {
		if err := f.Close(); err != nil {
			b.Error(err)
		}
	}()
	addr := h.Listener.Addr().String()
	if err := f.Set(balance.Target{Name: "a", Address: addr, Admin: addr}); err != nil {
		b.Fatal(err)
	}
	front := httptest.NewServer(f)
	defer front.Close()
	for _, c := range []struct{ name, url string }{{"direct", h.URL}, {"balanced", front.URL}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				resp, err := http.Get(c.url)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}
