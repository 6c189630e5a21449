package balance

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Target is one replica.
type Target struct {
	// Name is the replica's id, unique in a balancer.
	Name string
	// Address is the host:port of its API, Admin of its admin port, where /readyz answers.
	Address, Admin string
}

// Config is how a [Balancer] behaves. The zero value has all defaults.
type Config struct {
	// CheckInterval is the time between two readiness checks of a replica; 0 = 200 ms.
	CheckInterval time.Duration
	// CheckTimeout bounds one check; 0 = 2 s, long enough for a machine that is busy.
	CheckTimeout time.Duration
	// AnswerTimeout bounds the wait for an answer's header; 0 = 10 s.
	AnswerTimeout time.Duration
	// MaxInFlight bounds the requests in the balancer; one more gets 503. 0 = 4096.
	MaxInFlight int
	// MaxIdle bounds the idle connections kept to each replica; 0 = 256.
	MaxIdle int
	// Buffer bounds the bytes of a GET's answer that are held back until the answer is complete;
	// a longer answer streams, and breaks when its replica does. 0 = 256 KiB.
	Buffer int
}

func (c Config) checkInterval() time.Duration { return cmp.Or(c.CheckInterval, 200*time.Millisecond) }
func (c Config) checkTimeout() time.Duration  { return cmp.Or(c.CheckTimeout, 2*time.Second) }
func (c Config) answerTimeout() time.Duration { return cmp.Or(c.AnswerTimeout, 10*time.Second) }
func (c Config) maxInFlight() int             { return cmp.Or(c.MaxInFlight, 4096) }
func (c Config) maxIdle() int                 { return cmp.Or(c.MaxIdle, 256) }
func (c Config) buffer() int                  { return cmp.Or(c.Buffer, 256<<10) }

// Balancer is an [http.Handler] over a changing set of targets. It is safe for concurrent use.
type Balancer struct {
	config    Config
	proxy     *httputil.ReverseProxy
	transport *http.Transport // to the replicas
	checks    *http.Client    // to their admin ports

	held     sync.Pool // of *bytes.Buffer: the answers held back
	inFlight atomic.Int64
	retries  atomic.Uint64
	turn     atomic.Uint64                  // breaks ties of pick in rotation
	targets  atomic.Pointer[[]*targetState] // immutable; replaced under mu

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // one readiness loop per target
}

// New makes a balancer without targets: see [Balancer.Set].
func New(c Config) *Balancer {
	b := &Balancer{
		config: c,
		transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			MaxIdleConnsPerHost:   c.maxIdle(),
			IdleConnTimeout:       90 * time.Second,
			ResponseHeaderTimeout: c.answerTimeout(),
			DisableCompression:    true,
		},
		checks: &http.Client{
			Timeout:   c.checkTimeout(),
			Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true},
		},
	}
	b.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport:    attempts{b},
		BufferPool:   &copyBuffers{},
		ErrorHandler: fail,
		// What it would log, an answer cut short by its replica, its client sees as well.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	b.targets.Store(&[]*targetState{})
	return b
}

// Set adds a target, or puts it in the place of the one with its name. It counts as ready until its
// first check says otherwise.
func (b *Balancer) Set(t Target) error {
	if t.Name == "" || t.Address == "" || t.Admin == "" {
		return fmt.Errorf("balance: target %+v: Name, Address and Admin must all be set", t)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errors.New("balance: the balancer is closed")
	}
	rest := b.withoutLocked(t.Name)
	ctx, cancel := context.WithCancel(context.Background())
	added := &targetState{Target: t, stop: cancel}
	added.ready.Store(true)
	b.wg.Go(func() { b.watch(ctx, added) })
	rest = append(rest, added)
	b.targets.Store(&rest)
	return nil
}

// Remove takes the target with the name out; requests in flight on it go on. An unknown name is no
// error.
func (b *Balancer) Remove(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rest := b.withoutLocked(name)
	b.targets.Store(&rest)
}

// withoutLocked is a new slice of the targets but the one with the name, whose checks it stops.
func (b *Balancer) withoutLocked(name string) []*targetState {
	rest := make([]*targetState, 0, len(*b.targets.Load())+1)
	for _, t := range *b.targets.Load() {
		if t.Name == name {
			t.stop()
			continue
		}
		rest = append(rest, t)
	}
	return rest
}

// ServeHTTP passes the request to a replica and its answer back.
func (b *Balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer b.inFlight.Add(-1)
	if b.inFlight.Add(1) > int64(b.config.maxInFlight()) {
		fail(w, r, errBusy)
		return
	}
	b.proxy.ServeHTTP(w, r)
}

// TargetStats are the counts of one target since it was set.
type TargetStats struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Ready    bool   `json:"ready"`
	InFlight int64  `json:"in_flight"`
	Requests uint64 `json:"requests"` // attempts, including those sent again from another target
	Errors   uint64 `json:"errors"`   // attempts without a complete answer
}

// Stats are the balancer's counts.
type Stats struct {
	Retries uint64        `json:"retries"` // requests sent once more, to another target
	Targets []TargetStats `json:"targets"` // by name
}

// Stats reads the counts.
func (b *Balancer) Stats() Stats {
	s := Stats{Retries: b.retries.Load()}
	for _, t := range *b.targets.Load() {
		s.Targets = append(s.Targets, TargetStats{
			Name: t.Name, Address: t.Address, Ready: t.ready.Load(), InFlight: t.inFlight.Load(),
			Requests: t.requests.Load(), Errors: t.errors.Load(),
		})
	}
	slices.SortFunc(s.Targets, func(x, y TargetStats) int { return cmp.Compare(x.Name, y.Name) })
	return s
}

// Close removes all targets, ends their checks and closes the idle connections. Close the server
// in front first.
func (b *Balancer) Close() error {
	b.mu.Lock()
	b.closed = true
	for _, t := range *b.targets.Load() {
		t.stop()
	}
	b.targets.Store(&[]*targetState{})
	b.mu.Unlock()
	b.wg.Wait()
	b.transport.CloseIdleConnections()
	b.checks.CloseIdleConnections()
	return nil
}

var (
	errBusy        = errors.New("too many requests in flight in the load balancer")
	errUnreachable = errors.New("no replica can be reached")
)

// problem is an RFC 9457 problem document.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// fail answers a request that no replica answered.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	detail := "the replica's answer broke off: " + err.Error()
	switch {
	case errors.Is(err, errBusy), errors.Is(err, errUnreachable):
		status = http.StatusServiceUnavailable
		detail = err.Error()
		w.Header().Set("Retry-After", "1")
	case !repeatable(r):
		detail = "the connection to the replica broke, so whether the write happened is unknown: " + err.Error()
	}
	body, merr := json.Marshal(problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail})
	if merr != nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	w.Write(body) //nolint:errcheck // the client may be gone
}
