package tiers

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"go.opentelemetry.io/otel/trace"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

// What L2 says that a caller may branch on.
var (
	// ErrMiss: the shard answered, and has nothing under the key.
	ErrMiss = errors.New("tiers: miss")
	// ErrUnavailable: L2 could not say: no connection, an open breaker, no answer in time, or a shard
	// that refuses to serve. It is wrapped with the shard and the cause.
	ErrUnavailable = errors.New("tiers: L2 unavailable")
	// ErrTooLarge: a value or an entry is above the size that its tier takes. It is not stored.
	ErrTooLarge = errors.New("tiers: too large")
)

// L2Config says where the Redis Cluster is and what a call may cost. Zero fields mean their defaults.
type L2Config struct {
	// Addrs are host:port of some nodes; one that answers is enough to find the others. Required.
	Addrs []string
	// Username and Password of Redis ACLs; empty = no authentication.
	Username, Password string
	// TLS turns on TLS; nil = plain TCP.
	TLS *tls.Config
	// Dial connects to host:port, as an entry of Addrs or a node of the cluster names it; TLS goes on top.
	// It must heed its context. nil = a plain dialer. Behind proxies or NAT it maps the addresses that the
	// nodes announce.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds every call, whatever happens; a caller's earlier deadline holds too. 0 = 50 ms.
	// Within it, the largest value must cross the network.
	Timeout time.Duration
	// MaxValue is the largest value stored, in bytes; a larger one gets ErrTooLarge. 0 = 8 MiB.
	MaxValue int
	// Logger gets changes of connections and breakers. nil = slog.Default().
	Logger *slog.Logger
	// Tracer makes a span for each pipeline to a shard, in the trace of the call's context; nil = none.
	Tracer trace.TracerProvider
}

func (c L2Config) timeout() time.Duration { return cmp.Or(c.Timeout, 50*time.Millisecond) }

func (c L2Config) maxValue() int { return cmp.Or(c.MaxValue, 8<<20) }

func (c L2Config) logger() *slog.Logger { return cmp.Or(c.Logger, slog.Default()) }

// Validate reports all problems at once, each naming its field.
func (c L2Config) Validate() error {
	var problems []error
	if len(c.Addrs) == 0 {
		problems = append(problems, errors.New("tiers: L2 Addrs is empty, want at least one host:port"))
	}
	for _, address := range c.Addrs {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			problems = append(problems, fmt.Errorf("tiers: L2 Addrs holds %q, want host:port", address))
		}
	}
	if c.Username != "" && c.Password == "" {
		problems = append(problems, errors.New("tiers: L2 Username is set without a Password"))
	}
	if c.Timeout < 0 || (c.Timeout > 0 && c.Timeout < time.Millisecond) {
		problems = append(problems, fmt.Errorf("tiers: L2 Timeout %v, want at least 1ms, or 0 for the default", c.Timeout))
	}
	if c.MaxValue < 0 || c.MaxValue > 512<<20 {
		problems = append(problems, fmt.Errorf("tiers: L2 MaxValue %d, want at most 512 MiB (Redis takes no more), or 0 for the default", c.MaxValue))
	}
	return errors.Join(problems...)
}

const (
	// maxPipeline commands go to a shard as one pipeline; larger batches go in several.
	maxPipeline = 100
	// maxRedirects bounds how often one command follows MOVED or ASK.
	maxRedirects = 3
)

// L2 is the cache shared by all replicas: a Redis Cluster. Its bytes are not trusted: it may lose,
// keep too long or change anything that is stored, so what comes out is checked by the reader.
//
// rueidis pipelines over one connection to each primary. Which one serves a slot is known here and
// not left to rueidis' cluster client, for four promises which that client does not make: a call
// never dials nor reads the topology; it holds its deadline also while others do; every shard has a
// breaker of its own; and after Close nothing is left running.
//
// Its methods may be called by any number of goroutines.
type L2 struct {
	config   L2Config
	topology atomic.Pointer[topology] // never nil; replaced by run
	suspect  chan struct{}            // capacity 1: whoever sees the topology fail sends, run receives
	spans    *spans.Tracer

	cancel  context.CancelFunc // ends run and every shard's run
	running sync.WaitGroup

	deadlines deadlines
}

// OpenL2 checks the configuration and returns at once; it fails for nothing else. It connects in the
// background and for ever, so Redis may be down now and come up later.
func OpenL2(c L2Config) (*L2, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.Addrs = slices.Clone(c.Addrs)
	ctx, cancel := context.WithCancel(context.Background())
	l := &L2{config: c, suspect: make(chan struct{}, 1), spans: spans.New(c.Tracer), cancel: cancel}
	l.topology.Store(&topology{})
	l.running.Go(func() { l.run(ctx) })
	return l, nil
}

// Close ends all connections and waits until that is done, for about a second at most. Calls fail with
// [ErrUnavailable] from then on. Closing again does nothing.
func (l *L2) Close() {
	l.cancel()
	l.running.Wait()
}

// Get returns the value under the key, [ErrMiss] if there is none, or [ErrUnavailable]. The caller may
// keep and change the bytes.
func (l *L2) Get(ctx context.Context, key string) ([]byte, error) {
	reqs := []request{getRequest(key)}
	l.do(ctx, reqs)
	return reqs[0].value()
}

// Reply is what [L2.GetMany] says of one key: the value, or an error as of [L2.Get].
type Reply struct {
	Bytes []byte
	Err   error
}

// GetMany is [L2.Get] for many keys, in their order, within one Timeout for all. The keys of each
// shard go in one pipeline per 100; a shard that fails does not disturb the others.
func (l *L2) GetMany(ctx context.Context, keys []string) []Reply {
	reqs := make([]request, len(keys))
	for i, key := range keys {
		reqs[i] = getRequest(key)
	}
	l.do(ctx, reqs)
	replies := make([]Reply, len(keys))
	for i := range reqs {
		replies[i].Bytes, replies[i].Err = reqs[i].value()
	}
	return replies
}

// Set stores b under the key for ttl, at least a millisecond. It fails with [ErrTooLarge] above
// MaxValue, or with [ErrUnavailable]; the value may be stored all the same. b must not be changed
// afterwards, not even after an error: it may still be on its way out.
func (l *L2) Set(ctx context.Context, key string, b []byte, ttl time.Duration) error {
	return l.Fill(ctx, Filling{Key: key, Bytes: b, TTL: ttl})
}

// Unlink removes the keys, as far as it can within Timeout. It saves space and loads; nothing may
// depend on it. The error says how many keys may still be there.
func (l *L2) Unlink(ctx context.Context, keys ...string) error {
	reqs := make([]request, len(keys))
	for i, key := range keys {
		reqs[i] = request{command: "UNLINK", slot: cluster.Slot(key), build: func(b rueidis.Builder) rueidis.Completed {
			return b.Unlink().Key(key).Build()
		}}
	}
	l.do(ctx, reqs)
	failed, first := 0, error(nil)
	for i := range reqs {
		if err := reqs[i].failure(); err != nil {
			failed, first = failed+1, cmp.Or(first, err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("tiers: unlink: %d of %d keys may remain: %w", failed, len(keys), first)
	}
	return nil
}

// Available reports whether a call for the key would be sent: its shard is known and connected and
// the breaker is not open. It touches no network.
func (l *L2) Available(key string) bool {
	s := l.topology.Load().shard(cluster.Slot(key))
	return s != nil && s.state() != "open"
}

// ShardState is one shard as metrics and operators see it.
type ShardState struct {
	// Name is the primary's host:port, or "unreached" alone as long as no node has told the topology.
	Name string
	// Slots it serves, as "0-5460 5462"; empty if it is unreached.
	Slots string
	// State is of the breaker: "closed", "half-open" (a few calls may try) or "open". A shard without
	// a connection is "open": no call is sent.
	State string
	// Connected says whether there is a connection.
	Connected bool
	// Requests were sent: a pipeline counts once. Failures are those without a good answer. Refused were
	// not sent, for want of a connection or because of the breaker. All count since the process first
	// saw this primary.
	Requests, Failures, Refused uint64
	// Errors are pipelines without a good answer by [ErrorClass], those that were not sent included.
	Errors [Classes]uint64
	// Took is how long those that were sent took, failures included.
	Took coherence.Durations
}

// Serves reports whether the shard serves the slot, by the text of its Slots.
func (s ShardState) Serves(slot uint16) bool {
	for span := range strings.FieldsSeq(s.Slots) {
		first, last, two := strings.Cut(span, "-")
		if !two {
			last = first
		}
		low, err1 := strconv.ParseUint(first, 10, 16)
		high, err2 := strconv.ParseUint(last, 10, 16)
		if err1 == nil && err2 == nil && uint64(slot) >= low && uint64(slot) <= high {
			return true
		}
	}
	return false
}

// Shards returns the shards in the order of their slots.
func (l *L2) Shards() []ShardState {
	t := l.topology.Load()
	if len(t.shards) == 0 {
		return []ShardState{{Name: "unreached", State: "open"}}
	}
	states := make([]ShardState, len(t.shards))
	for i, s := range t.shards {
		states[i] = ShardState{
			Name: s.address, Slots: t.ranges[i], State: s.state(), Connected: s.link.Load() != nil,
			Requests: s.requests.Load(), Failures: s.failures.Load(), Refused: s.refused.Load(), Took: s.took.Durations(),
		}
		for class := range s.errors {
			states[i].Errors[class] = s.errors[class].Load()
		}
	}
	return states
}

// request is one command of a call: what to send and what came of it. It is built anew for each time
// it is sent, because rueidis reuses a command's memory.
type request struct {
	command string // its name in Redis
	slot    uint16
	build   func(rueidis.Builder) rueidis.Completed
	shard   *shard // where it goes next; nil when it is done
	asking  bool   // it follows an ASK
	reply   rueidis.RedisResult
	err     error // why there is no reply
}

func getRequest(key string) request {
	return request{command: "GET", slot: cluster.Slot(key), build: func(b rueidis.Builder) rueidis.Completed {
		return b.Get().Key(key).Build()
	}}
}

// failure is why the command did not do its work. A nil reply is none.
func (r *request) failure() error {
	if r.err != nil {
		return r.err
	}
	err := r.reply.Error()
	switch {
	case err == nil || rueidis.IsRedisNil(err):
		return nil
	case !healthy(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("tiers: L2: %w", err)
}

// value is the string in the reply. Another type of Redis under the key is foreign: a miss, so that the
// next fill puts it right.
func (r *request) value() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	b, err := r.reply.AsBytes()
	switch {
	case err == nil:
		return b, nil
	case rueidis.IsRedisNil(err) || wrongType(err):
		return nil, ErrMiss
	}
	return nil, r.failure()
}

// do carries out the requests within the Timeout, follows redirections, and leaves in each either a
// reply or an error. Requests to one shard go in their order.
func (l *L2) do(caller context.Context, reqs []request) {
	if len(reqs) == 0 {
		return
	}
	if err := caller.Err(); err != nil {
		for i := range reqs {
			reqs[i].err = fmt.Errorf("%w: %w: %w", ErrUnavailable, errCallerGone, err)
		}
		return
	}
	d := l.deadlines.start(caller, l.config.timeout())
	defer l.deadlines.end(d)
	t := l.topology.Load()
	for i := range reqs {
		if reqs[i].shard = t.shard(reqs[i].slot); reqs[i].shard == nil {
			reqs[i].err = t.noShard()
			l.suspectTopology()
		}
	}
	for attempt := 0; ; attempt++ {
		if again := l.sendAll(d, reqs); !again { //nolint:contextcheck // d is the context
			return
		}
		for i := range reqs {
			l.redirect(&reqs[i], attempt == maxRedirects)
		}
	}
}

// sendAll sends what is not done, to each shard on its own. It reports whether any was redirected.
func (l *L2) sendAll(d *deadline, reqs []request) bool {
	var room [3]group // most clusters are small
	groups := room[:0]
	for i := range reqs {
		s := reqs[i].shard
		if s == nil {
			continue
		}
		n := slices.IndexFunc(groups, func(g group) bool { return g.shard == s })
		if n < 0 {
			groups, n = append(groups, group{shard: s, reqs: make([]*request, 0, len(reqs))}), len(groups)
		}
		groups[n].reqs = append(groups[n].reqs, &reqs[i])
	}
	switch len(groups) {
	case 0:
		return false
	case 1:
		l.sendGroup(d, groups[0])
	default:
		l.sendGroups(d, slices.Clone(groups))
	}
	for i := range reqs {
		if reqs[i].shard != nil {
			return true
		}
	}
	return false
}

// group is the part of a call that one shard serves.
type group struct {
	shard *shard
	reqs  []*request
}

// sendGroups sends to all shards at once, and returns when all have answered or d is over.
func (l *L2) sendGroups(d *deadline, groups []group) {
	var others sync.WaitGroup
	for _, g := range groups[1:] {
		others.Go(func() { l.sendGroup(d, g) })
	}
	l.sendGroup(d, groups[0])
	others.Wait()
}

// sendGroup sends to one shard, in pipelines of bounded length. Afterwards only those requests have a
// shard that a redirection must find a new one for.
func (l *L2) sendGroup(d *deadline, g group) {
	for batch := range slices.Chunk(g.reqs, maxPipeline) {
		if err := g.shard.send(d, batch); err != nil {
			l.suspectTopology()
			for _, r := range batch {
				r.err, r.shard = err, nil
			}
			continue
		}
		for _, r := range batch {
			if _, _, redirected := redirection(r.reply.Error()); !redirected {
				r.shard = nil
			}
		}
	}
}

// redirect finds the shard that MOVED or ASK named. A node that is not known as a primary yet will be
// with the next topology; until then the key is not available.
func (l *L2) redirect(r *request, last bool) {
	if r.shard == nil {
		return
	}
	address, asking, _ := redirection(r.reply.Error())
	if !asking {
		l.suspectTopology()
	}
	address = r.shard.resolve(address)
	target := l.topology.Load().at(address)
	switch {
	case target == nil:
		r.err = fmt.Errorf("%w: slot %d went to %s, which is not known yet", ErrUnavailable, r.slot, address)
	case last:
		r.err = fmt.Errorf("%w: slot %d was redirected %d times", ErrUnavailable, r.slot, maxRedirects+1)
		target = nil
	}
	r.shard, r.asking = target, asking
}
