package tiers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/internal/spans"
)

// Peers asks the entity's owner replica for its entry, in L2's format.
type Peers interface {
	// Fetch returns the owner's entry. [ErrNoOwner] means that this node is the owner or knows none.
	// It waits for a bounded time.
	Fetch(ctx context.Context, namespace, view, id string) ([]byte, error)
}

// ErrNoOwner says that no other replica owns the entity.
var ErrNoOwner = errors.New("tiers: no other replica is the owner")

// Shared is what the caches of one node have in common.
type Shared struct {
	Tracker  *coherence.Tracker // required
	L2       Store              // nil = none; a nil *L2 is not nil
	Peers    Peers              // nil = none
	Bulkhead *Bulkhead          // required
	Own      *OwnWrites         // nil = none are told
	// LoadTimeout bounds a flight from its start to its end; 0 = 5 s.
	LoadTimeout time.Duration
	// LeaseWait is how long a flight waits for another replica's load; 0 = 500 ms, or a quarter of
	// LoadTimeout if that is shorter.
	LeaseWait time.Duration
	// LeaseTTL is how long a lease outlives a replica that died with it; 0 = 2 s, or LeaseWait if that
	// is longer.
	LeaseTTL time.Duration
	// PeerWait is how long a flight waits for owner replicas, all together; 0 = as LeaseWait.
	PeerWait time.Duration
	// Begin begins the transaction that is the last resort of [ReadTogether]; nil = it has none.
	Begin func(ctx context.Context) (Transaction, error)
	// Together counts what such reads cost; nil = nobody counts.
	Together *TogetherCounts
	// Scheduled returns the scopes of changes that are to go into the log later: of all tags and namespaces, and of
	// these ids of a namespace. [Cache.Verify] asks it. nil = nobody schedules any.
	Scheduled func(ctx context.Context, namespace string, ids []string) ([]coherence.ScopeHash, error)
	// ProofTimeout bounds the wait of one read for a poll; 0 = 1 s.
	ProofTimeout time.Duration
	Logger       *slog.Logger // nil = slog.Default()
	// Tracer makes spans of what is no plain hit in L1; nil = none. Database is the host:port that they name as that
	// of sources that run SQL; empty = none.
	Tracer   trace.TracerProvider
	Database string
	// Random draws a number below n, from 0 on, for the jitter of times to live; nil = [rand.Int64N]. It
	// is called concurrently, and is for simulations that must repeat.
	Random func(n int64) int64
}

// Config describes one view of one namespace.
type Config[V any] struct {
	Namespace, View string
	// Key is the key in L2 of an id under a generation; an error wraps [ErrBadID] and does not depend on
	// the generation.
	Key    func(g cluster.Generation, id string) (string, error)
	Source Source[V] // required
	// Tags are what may change besides the entity itself; at most [MaxTags]. nil = none.
	Tags func(id string, v V) []string
	// TagAbsent asks Tags also for what is not there, with the zero V: where a change of something else
	// than the id itself can bring it about.
	TagAbsent bool
	// TTL and NegativeTTL of what is there and of what is not, 10 ms to 10 years; both with a tenth of
	// jitter; 0 = 1 h and 30 s.
	TTL, NegativeTTL time.Duration
	// Refresh loads entries anew before they expire.
	Refresh Refresh
	// RetryAfter is for how long, with a tenth of jitter, reads that may have a STALE answer take it without
	// asking after a load of their id has failed, up to 1 h; 0 = 100 ms.
	RetryAfter time.Duration
	// MaxEntries and MaxBytes bound L1; 0 = 100,000 and 64 MiB.
	MaxEntries int
	MaxBytes   int64
	// Codec encodes the values; 0 = [JSON].
	Codec Codec
	// Compression of what is stored in L2 and sent to peers.
	Compression Compression
	// MaxValue is the largest encoded value that is kept in any tier, in bytes before compression; a larger one
	// is served, and counted. 0 = [MaxPayload], which is the most.
	MaxValue int
	// NoVerify leaves the cache out of [Cache.Verify].
	NoVerify bool
}

// Validate reports all problems of the settings at once, each naming its field.
func (c Config[V]) Validate() error {
	problems := []error{c.Refresh.validate()}
	for _, d := range []struct {
		field           string
		value, min, max time.Duration
	}{
		{"TTL", c.TTL, minTTL, maxTTL}, {"NegativeTTL", c.NegativeTTL, minTTL, maxTTL}, {"RetryAfter", c.RetryAfter, time.Millisecond, time.Hour},
	} {
		if d.value != 0 && (d.value < d.min || d.value > d.max) {
			problems = append(problems, fmt.Errorf("tiers: %s is %v; want %v to %v, or 0 for the default", d.field, d.value, d.min, d.max))
		}
	}
	if c.MaxEntries < 0 {
		problems = append(problems, errors.New("tiers: MaxEntries is negative; want 0 for the default or more"))
	}
	if c.MaxBytes < 0 {
		problems = append(problems, errors.New("tiers: MaxBytes is negative; want 0 for the default or more"))
	}
	if c.MaxValue < 0 || c.MaxValue > MaxPayload {
		problems = append(problems, fmt.Errorf("tiers: MaxValue is %d bytes; want 1 to %d, or 0 for the most", c.MaxValue, MaxPayload))
	}
	_, unsuited := NewCoder[V](c.Codec)
	return errors.Join(append(problems, unsuited, c.Compression.Validate())...)
}

// Cache is the read path of one view. It is safe for concurrent use.
type Cache[V any] struct {
	Shared
	config     Config[V]
	coder      *Coder[V]
	packing    *Packing
	stamps     *coherence.Stamps
	l1         *L1[V]
	flights    flights[V]
	counts     counts
	misses     misses
	order      atomic.Uint64 // of reads and loads, see reading
	refreshing atomic.Int64  // refreshes under way
	rereading  atomic.Bool   // a load of Verify is under way
	spans      *spans.Tracer
	runsSQL    bool // the source does

	life context.Context //nolint:containedctx // the cache's lifetime: ends at Close
	end  context.CancelCauseFunc
	work sync.WaitGroup // flights, refreshes among them, and loads of Verify
}

// minTTL and maxTTL bound the times to live that a cache may be given: shorter is of no use, and longer
// would leave the range of a clock.
const (
	minTTL = 10 * time.Millisecond
	maxTTL = 10 * 365 * 24 * time.Hour
)

// The bounds of an L1 of which none are given.
const (
	DefaultMaxEntries = 100_000
	DefaultMaxBytes   = 64 << 20
)

// NewCache makes the read path. [Cache.Close] ends it.
func NewCache[V any](shared Shared, c Config[V]) (*Cache[V], error) {
	var problems []error
	if c.Source == nil {
		problems = append(problems, errors.New("tiers: Source is nil; want where the values come from"))
	}
	if c.Key == nil {
		problems = append(problems, errors.New("tiers: Key is nil; want the key of an id"))
	}
	if err := errors.Join(append(problems, c.Validate())...); err != nil {
		return nil, err
	}
	coder, err1 := NewCoder[V](c.Codec)
	packing, err2 := NewPacking(c.Compression)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	c.MaxValue = cmp.Or(c.MaxValue, MaxPayload)
	c.TTL = cmp.Or(c.TTL, time.Hour)
	c.NegativeTTL = cmp.Or(c.NegativeTTL, 30*time.Second)
	c.RetryAfter = cmp.Or(c.RetryAfter, 100*time.Millisecond)
	shared.LoadTimeout = cmp.Or(shared.LoadTimeout, 5*time.Second)
	wait := min(500*time.Millisecond, shared.LoadTimeout/4) // and then there is time left to load
	shared.LeaseWait = cmp.Or(shared.LeaseWait, wait)
	shared.LeaseTTL = cmp.Or(shared.LeaseTTL, max(2*time.Second, shared.LeaseWait))
	shared.PeerWait = cmp.Or(shared.PeerWait, shared.LeaseWait)
	shared.ProofTimeout = cmp.Or(shared.ProofTimeout, time.Second)
	shared.Logger = cmp.Or(shared.Logger, slog.Default())
	if shared.Random == nil {
		shared.Random = rand.Int64N
	}
	_, runsSQL := c.Source.(TransactionSource[V])
	life, end := context.WithCancelCause(context.Background())
	return &Cache[V]{
		Shared:  shared,
		config:  c,
		coder:   coder,
		packing: packing,
		spans:   spans.New(shared.Tracer),
		runsSQL: runsSQL,
		stamps:  shared.Tracker.Stamps(),
		l1:      newL1[V](cmp.Or(c.MaxEntries, DefaultMaxEntries), cmp.Or(c.MaxBytes, DefaultMaxBytes)),
		flights: flights[V]{byID: map[string]*flight[V]{}},
		misses:  misses{seed: maphash.MakeSeed()},
		life:    life,
		end:     end,
	}, nil
}

// Close ends the flights and waits for them. Reads fail with [ErrClosed] from then on. A source that
// goes on after its context has ended is the error: it is waited for no longer than twice LoadTimeout
// and 2 s, which is more than a server takes that falls silent.
func (c *Cache[V]) Close() error {
	c.flights.mu.Lock() // no flight starts between the end and the wait
	c.end(ErrClosed)
	c.flights.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		c.work.Wait()
		close(ended)
	}()
	wait := 2*c.LoadTimeout + 2*time.Second
	patience := time.NewTimer(wait)
	defer patience.Stop()
	select {
	case <-ended:
		return nil
	case <-patience.C:
		return fmt.Errorf("tiers: a load of %s (%s) goes on %v after its context ended: its source must heed the context",
			c.config.Namespace, c.config.View, wait)
	}
}
