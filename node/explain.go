package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// Explanation is what one replica knows of one entry, without its value: where it is, under which snapshot, what it
// depends on and what changed of that, and how reads go. It describes the moment at which it was made; nothing was
// loaded, filled, moved or counted for it, but that Redis was asked once. It is made for JSON.
type Explanation struct {
	Replica   string `json:"replica"` // its [Config.ID]
	Namespace string `json:"namespace"`
	View      string `json:"view"`
	ID        string `json:"id"` // of a query, ? and its parameters in the order of their names

	// Label is that of a read with the cache's own budget: "fresh", "stale" or "grace" as L1 would answer it now, if
	// nothing newer could be had, for the last two; "pending" if it would be answered with a put that need not be in
	// Postgres yet; "none" if L1 has no answer. Age in seconds is the answer's: it reflects every commit that is older.
	Label string  `json:"label"`
	Age   float64 `json:"age_seconds"`
	// Why says so in a sentence or three.
	Why string `json:"why"`

	// Key is that in Redis, of Slot, which Shard serves; nil = no shard is known to, or there is no Redis.
	Key   string          `json:"key"`
	Slot  uint16          `json:"slot"`
	Shard *ExplainedShard `json:"shard,omitempty"`
	// Owner is the id of the replica that owns the entity, as this one sees it, and answers while the shard is out.
	Owner     string `json:"owner"`
	OwnedHere bool   `json:"owned_here"`
	// Generation is the present one, "3.1": the application's and the namespace's.
	Generation string `json:"generation"`
	// PollAge in seconds is how old this replica's knowledge is; a day if it has none. Budget and MaxStale are those of
	// reads that name none.
	PollAge  float64 `json:"poll_age_seconds"`
	Budget   float64 `json:"budget_seconds"`
	MaxStale float64 `json:"max_stale_seconds"`
	// Loading: reads of it are waiting for a load. RetryIn in seconds is how long reads that may have a STALE answer take
	// it without asking, since a load has failed; 0 = they ask.
	Loading bool    `json:"loading"`
	RetryIn float64 `json:"retry_in_seconds"`

	// L1 is the entry in this process; nil = none.
	L1 *ExplainedEntry `json:"l1,omitempty"`
	// L2 is "found", "nothing", "expired", "changed", "unreadable", "unavailable" (no connection, or an open breaker),
	// "silent" (no answer) or "" (there is no Redis). L2Entry is the entry, if it could be read, and L2Error why not.
	L2      string          `json:"l2"`
	L2Entry *ExplainedEntry `json:"l2_entry,omitempty"`
	L2Error string          `json:"l2_error,omitempty"`
	// Scopes are what the entries depend on; where there is no entry, its tags are not known.
	Scopes []ExplainedScope `json:"scopes"`
	// Miss is the last read here that L1 had no FRESH answer for; nil = none is remembered.
	Miss *ExplainedMiss `json:"miss,omitempty"`
	// Pending is the put that reads are answered with; nil = none.
	Pending *ExplainedPut `json:"pending,omitempty"`
}

// ExplainedShard is the Redis shard of a key.
type ExplainedShard struct {
	Name  string `json:"name"`  // the primary's host:port
	State string `json:"state"` // of the breaker, as in [ShardStats]
	Slots string `json:"slots"`
}

// ExplainedEntry is an entry in one tier.
type ExplainedEntry struct {
	Absent bool `json:"absent"` // it says that there is no such thing
	// Snapshot is what it was read under, "xmin:xmax:xip,xip" as Postgres writes it, and Timeline the history of
	// transaction ids in which that means something; "0" = in none.
	Snapshot   string `json:"snapshot"`
	Timeline   string `json:"timeline"`
	Generation string `json:"generation"`
	// From is the tier it came from: "source", "l2" or "owner".
	From string `json:"from"`
	// Seconds: since it was loaded, by the loader's clock; until it expires; until it is to be refreshed. Not positive
	// when that is over.
	LoadedAgo float64 `json:"loaded_seconds_ago"`
	ExpiresIn float64 `json:"expires_in_seconds"`
	RefreshIn float64 `json:"refresh_in_seconds"`
	// Tags; one that only the entry's maker knows is # and its hash.
	Tags []string `json:"tags"`
	// Bytes it takes in the tier; and in L2 the size of the payload before compression, by which codec it is encoded and
	// how compressed.
	Bytes       int64  `json:"bytes"`
	Payload     int    `json:"payload_bytes,omitempty"`
	Codec       string `json:"codec,omitempty"`
	Compression string `json:"compression,omitempty"`
	// Refused is why it is not valid as far as this replica knows: "changed", "grace" (its change has a grace), "doubt"
	// (changes may go unlogged), "noted" (a newer one was served), "history" (of another timeline), "flushed" (older than
	// what this replica knows everything from on), "earlier" or "forgotten" (older than changes that are no longer told
	// apart); "" = it is valid. RefusedBy is a scope that refuses it so, and Lacks the transaction of a change that it
	// does not see.
	Refused   string `json:"refused,omitempty"`
	RefusedBy string `json:"refused_by,omitempty"`
	Lacks     uint64 `json:"lacks_transaction,omitempty"`
}

// ExplainedScope is what this replica knows of one scope.
type ExplainedScope struct {
	Scope string `json:"scope"` // "product:42", "tag category:7", "namespace product", ...
	// Last is the transaction of the last change that was heard of, and HeardAgo for how long it has been known, in
	// seconds, to 10 ms; 0 = no change is known, or it is no longer told apart.
	Last     uint64  `json:"last_transaction,omitempty"`
	HeardAgo float64 `json:"heard_seconds_ago,omitempty"`
	// Doubted: changes may go unlogged.
	Doubted bool `json:"doubted,omitempty"`
	// L1 and L2 are why it refuses the entry there, as in [ExplainedEntry].
	L1 string `json:"l1_refused,omitempty"`
	L2 string `json:"l2_refused,omitempty"`
}

// ExplainedMiss is how a read went that L1 had no FRESH answer for.
type ExplainedMiss struct {
	Ago float64 `json:"seconds_ago"`
	Why string  `json:"why"`
	// L1 is "nothing", "expired", "changed", "generation", "unproven" (what was known was too old) or "just" (it came
	// in meanwhile). Refused, Scope and Lacks are as of then: see [ExplainedEntry]. PollAge in seconds was that of what
	// was known.
	L1      string  `json:"l1"`
	Refused string  `json:"refused,omitempty"`
	Scope   string  `json:"refused_by,omitempty"`
	Lacks   uint64  `json:"lacks_transaction,omitempty"`
	PollAge float64 `json:"poll_age_seconds"`
	// What came of asking, "" = it was not asked: L2 as in [Explanation] or "doubt"; the lease: "held", "waited" (for
	// another replica's load, which came), "cut_through" (which did not come), "silent"; the owner: "found", "here" (this
	// replica), "silent", or as of L2; the source: "found", "nothing", "overloaded", "failed".
	L2     string `json:"l2,omitempty"`
	Lease  string `json:"lease,omitempty"`
	Owner  string `json:"owner,omitempty"`
	Source string `json:"source,omitempty"`
	// Tier answered, "none" if no one did, with Label "fresh", "stale", "grace" or "none"; Failure is why not:
	// "uncertain", "overloaded", "timeout", "gone" (the reader was), "postgres", "source", "closed".
	Tier    string `json:"tier"`
	Label   string `json:"label"`
	Failure string `json:"failure,omitempty"`
}

// ExplainedPut is a put that is not known to be in Postgres.
type ExplainedPut struct {
	Seq     uint64  `json:"seq"` // its place in the queue
	Ago     float64 `json:"seconds_ago"`
	Removed bool    `json:"removed"` // it deletes the id
	Settled bool    `json:"settled"` // it is committed or given up, and shown until the next poll
}

// ErrNoCache says that the node has no cache of that namespace and view.
var ErrNoCache = errors.New("no such cache")

// known is a cache as the node knows it: with what its readers ask for who name nothing.
type known struct {
	cache
	want  tiers.Want
	query bool // its ids are those of parameters
}

// Explain says what this replica knows of an entry, and why reads of it are answered as they are. View "" is "detail".
// The id in a cache of queries is the text of the parameters, as in a URL: "category=7&limit=10", in any order. Redis is
// asked by way of the shard's breaker, within its time-out. The error wraps [ErrNoCache], [ErrBadID] or [ErrClosed].
func (n *Node) Explain(ctx context.Context, namespace, view, id string) (Explanation, error) {
	name := cacheName{namespace, view}
	if view == "" {
		name.view = "detail"
	}
	fail := func(err error) (Explanation, error) {
		return Explanation{}, &Error{Op: "explain", Namespace: name.namespace, View: name.view, Err: err}
	}
	c, err := n.cacheOf(name)
	if err != nil {
		return fail(err)
	}
	if c.query {
		p, err := paramsOf("?" + strings.TrimPrefix(id, "?"))
		if err != nil {
			return fail(fmt.Errorf("%w: %w", ErrBadID, err))
		}
		id = idOf(p)
	}
	t, err := c.Explain(ctx, id, c.want)
	if err != nil {
		return fail(err)
	}
	e := Explanation{
		Replica: n.id, Namespace: name.namespace, View: name.view, ID: id,
		Label: t.Label.String(), Age: t.Age.Seconds(), Key: t.Key, Slot: cluster.Slot(t.Key), Generation: t.Generation.String(),
		PollAge: secondsSince(t.Known, t.Now), Budget: c.want.Budget.Seconds(), MaxStale: c.want.MaxStale.Seconds(),
		Loading: t.Loading, RetryIn: t.Resting.Seconds(), L2: t.InL2.String(), Scopes: []ExplainedScope{},
		Owner: n.id, OwnedHere: true,
	}
	if n.members != nil {
		if owner, ok := cluster.Owner(n.members.View().Members, namespace+":"+id); ok {
			e.Owner, e.OwnedHere = owner.ID, owner.Boot == n.boot
		}
	}
	if n.parts.L2 != nil {
		e.Shard = shardOf(n.parts.L2.Shards(), e.Slot)
	}
	if t.Unread != nil {
		e.L2Error = t.Unread.Error()
	}
	e.L1, e.L2Entry = explainedEntry(t.L1, t.Scopes), explainedEntry(t.L2, t.Scopes)
	for _, s := range t.Scopes {
		e.Scopes = append(e.Scopes, explainedScope(s, t.Now))
	}
	if p := n.puts.Load().follower(namespace); p != nil && p.cache() == name {
		if e.Pending = p.describe(id); e.Pending != nil {
			e.Label, e.Age = "pending", 0
		}
	}
	if t.Miss != nil {
		e.Miss = explainedMiss(*t.Miss, t.Scopes, t.Now)
	}
	e.Why = reasoning{&e, &t, n.tracker.Failing(), n.watches.of(t.Scopes)}.why()
	return e, nil
}

// cacheOf is the cache of that name. The error names those that there are.
func (n *Node) cacheOf(name cacheName) (known, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return known{}, ErrClosed
	}
	if c, ok := n.caches[name]; ok {
		return c, nil
	}
	var there []string
	for other := range n.caches {
		there = append(there, fmt.Sprintf("%s (%s)", other.namespace, other.view))
	}
	if len(there) == 0 {
		return known{}, fmt.Errorf("%w: this node has none", ErrNoCache)
	}
	slices.Sort(there)
	return known{}, fmt.Errorf("%w: want one of %s", ErrNoCache, strings.Join(there, ", "))
}

// shardOf is the one that serves the slot; nil if none is known.
func shardOf(shards []tiers.ShardState, slot uint16) *ExplainedShard {
	for _, s := range shards {
		if s.Serves(slot) {
			return &ExplainedShard{Name: s.Name, State: s.State, Slots: s.Slots}
		}
	}
	return nil
}

// secondsSince is the time from the instant until now; a day if it is not known.
func secondsSince(at, now coherence.Instant) float64 {
	if at <= never {
		return (24 * time.Hour).Seconds()
	}
	return now.Sub(at).Seconds()
}

// maxInProgress bounds the transactions in progress that the text of a snapshot tells.
const maxInProgress = 100

func explainedEntry(c *tiers.Copy, scopes []tiers.ScopeExplanation) *ExplainedEntry {
	if c == nil {
		return nil
	}
	s := c.Snapshot
	more := ""
	if len(s.Xip) > maxInProgress {
		more = fmt.Sprintf(",... (%d more)", len(s.Xip)-maxInProgress)
		s.Xip = s.Xip[:maxInProgress]
	}
	timeline, text, _ := strings.Cut(s.String(), "/")
	e := &ExplainedEntry{
		Absent: c.Absent, Snapshot: text + more, Timeline: timeline, Generation: c.Generation.String(), From: c.Tier.String(),
		LoadedAgo: time.Since(c.LoadedAt).Seconds(), ExpiresIn: c.Left.Seconds(), RefreshIn: c.Refresh.Seconds(),
		Tags: c.Tags, Bytes: c.Bytes, Payload: c.Payload, Refused: c.Standing.Refused.String(), Lacks: c.Standing.By.Lacks,
	}
	if c.Codec != 0 {
		e.Codec, e.Compression = strings.ToLower(c.Codec.String()), c.Compression.String()
	}
	if c.Standing.Scope >= 0 {
		e.RefusedBy = scopes[c.Standing.Scope].Name
	}
	return e
}

func explainedScope(s tiers.ScopeExplanation, now coherence.Instant) ExplainedScope {
	e := ExplainedScope{Scope: s.Name, Last: s.Last, Doubted: s.Doubt != nil, L1: s.L1.String(), L2: s.L2.String()}
	if s.Heard != 0 {
		e.HeardAgo = now.Sub(s.Heard).Seconds()
	}
	return e
}

func explainedMiss(m tiers.Miss, scopes []tiers.ScopeExplanation, now coherence.Instant) *ExplainedMiss {
	e := &ExplainedMiss{
		Ago: now.Sub(m.At).Seconds(), L1: m.L1.String(), Refused: m.Refused.String(), Lacks: m.XID, PollAge: secondsSince(m.Known, m.At),
		L2: m.L2.String(), Lease: m.Lease.String(), Owner: m.Owner.String(), Source: m.Source.String(),
		Tier: m.Tier.String(), Label: m.Label.String(), Failure: m.Failure.String(),
	}
	if m.Scope != 0 {
		e.Scope = "tag #" + strconv.FormatUint(uint64(m.Scope), 16) // which it may have no more
		for _, s := range scopes {
			if s.Scope == m.Scope {
				e.Scope = s.Name
			}
		}
	}
	e.Why = e.why()
	return e
}

// describe is the put of the id that reads are answered with; nil = none.
func (p *pending[V]) describe(id string) *ExplainedPut {
	w, ok := p.get(id)
	if !ok {
		return nil
	}
	return &ExplainedPut{Seq: w.seq, Ago: max(time.Since(w.at).Seconds(), 0), Removed: w.removed, Settled: w.settled}
}

// of is the first problem of a watch for which one of the scopes is in doubt; nil = there is none.
func (w *watches) of(scopes []tiers.ScopeExplanation) *drift {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.found {
		for _, scope := range d.scopes() {
			if slices.ContainsFunc(scopes, func(s tiers.ScopeExplanation) bool { return s.Scope == scope && s.Doubt != nil }) {
				return &d
			}
		}
	}
	return nil
}
