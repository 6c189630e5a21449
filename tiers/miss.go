package tiers

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
)

// Step is what a read met on its way to an answer, at one tier or at the lease.
type Step uint8

// The steps. Which of them there can be at which tier, [Miss] says.
const (
	StepNotAsked    Step = iota
	StepFound            // an entry that could be used, or a value
	StepNothing          // none
	StepExpired          // its time to live was over
	StepChanged          // it had changed, or its changes may go unlogged
	StepGeneration       // it was of another generation than the present one
	StepUnproven         // nothing was known to be wrong with it, but what was known was too old for the read
	StepJust             // it came in while the read looked
	StepUnreadable       // it was damaged, or not of this build's type
	StepUnavailable      // no connection, or an open breaker: it was not asked
	StepSilent           // no answer, or an error
	StepDoubt            // it was not asked, since nothing can be kept while changes may go unlogged
	StepHeld             // the lease was this replica's
	StepWaited           // it was another's, who came back with the value
	StepCutThrough       // it was another's, for too long
	StepHere             // this replica is the owner itself
	StepOverloaded       // too many loads were under way
	StepFailed           // an error
)

// String is one word for JSON and tools; "" for StepNotAsked.
func (s Step) String() string {
	names := [...]string{
		StepNotAsked: "", StepFound: "found", StepNothing: "nothing", StepExpired: "expired", StepChanged: "changed",
		StepGeneration: "generation", StepUnproven: "unproven", StepJust: "just", StepUnreadable: "unreadable",
		StepUnavailable: "unavailable", StepSilent: "silent", StepDoubt: "doubt", StepHeld: "held", StepWaited: "waited",
		StepCutThrough: "cut_through", StepHere: "here", StepOverloaded: "overloaded", StepFailed: "failed",
	}
	if int(s) >= len(names) {
		return "unknown"
	}
	return names[s]
}

// Miss is how a read went that L1 had no FRESH answer for.
type Miss struct {
	// At is when the read had looked at L1.
	At coherence.Instant
	// L1 is why that was not enough: StepNothing, StepExpired, StepChanged, StepGeneration, StepUnproven or StepJust.
	L1 Step
	// Refused, Scope and XID are why, by which scope and by which transaction, with StepChanged; 0 = not known.
	Refused coherence.Refusal
	Scope   coherence.ScopeHash
	XID     uint64
	// Known is when the last poll was sent by then; noInstant, before every instant, if there was none.
	Known coherence.Instant
	// L2 is what came of asking it; Lease of asking for the right to load: StepHeld, StepWaited, StepCutThrough,
	// StepSilent; Owner of asking the owner replica; Source of asking the source: StepFound, StepNothing,
	// StepOverloaded, StepFailed. A read that joined the flight of another met what that met.
	L2, Lease, Owner, Source Step
	// Tier is where the answer came from, 0 = there was none; Label is the answer's.
	Tier  Tier
	Label Label
	// Failure is why there was no answer.
	Failure Failure
}

// Label is that of an answer.
type Label uint8

// The labels.
const (
	LabelNone   Label = iota // there is no answer
	LabelStale               // STALE
	LabelGraced              // STALE, and lacks nothing but changes in their grace
	LabelFresh               // FRESH
)

// String is the label in JSON and tools.
func (l Label) String() string {
	switch l {
	case LabelStale:
		return "stale"
	case LabelGraced:
		return "grace"
	case LabelFresh:
		return "fresh"
	case LabelNone:
	}
	return "none"
}

// Failure is why a read got no answer, without the texts of errors, in which values may stand.
type Failure uint8

// The failures.
const (
	FailureNone Failure = iota
	FailureUncertain
	FailureOverloaded
	FailureClosed
	FailureTimeout  // a time-out, the reader's or the load's
	FailureGone     // the reader gave up
	FailurePostgres // an error of Postgres
	FailureOther    // of the source
)

// String is one word for JSON and tools; "" for FailureNone.
func (f Failure) String() string {
	switch f {
	case FailureNone:
		return ""
	case FailureUncertain:
		return "uncertain"
	case FailureOverloaded:
		return "overloaded"
	case FailureClosed:
		return "closed"
	case FailureTimeout:
		return "timeout"
	case FailureGone:
		return "gone"
	case FailurePostgres:
		return "postgres"
	case FailureOther:
		return "source"
	}
	return "unknown"
}

func failureOf(err error) Failure {
	switch {
	case err == nil:
		return FailureNone
	case errors.Is(err, ErrOverloaded):
		return FailureOverloaded
	case errors.Is(err, ErrClosed):
		return FailureClosed
	case errors.Is(err, ErrUncertain):
		return FailureUncertain
	case errors.Is(err, context.DeadlineExceeded):
		return FailureTimeout
	case errors.Is(err, context.Canceled):
		return FailureGone
	}
	if _, answered := errors.AsType[*pq.Error](err); answered {
		return FailurePostgres
	}
	return FailureOther
}

// course is what a flight met. Its own goroutine writes it, and readers may look before that is at its end.
type course struct{ l2, lease, owner, source step }

// step is a [Step] of which the first counts.
type step struct{ atomic.Uint32 }

func (s *step) note(met Step) { s.CompareAndSwap(uint32(StepNotAsked), uint32(met)) }

func (s *step) met() Step { return Step(s.Load()) }

// noteDoubt notes that L2, if there is one, was not asked, since nothing can be kept.
func (c *course) noteDoubt(l2 Store) {
	if l2 != nil {
		c.l2.note(StepDoubt)
	}
}

// at is the flight's step at the tier that an entry comes from.
func (c *course) at(from Tier) *step {
	if from == TierOwner {
		return &c.owner
	}
	return &c.l2
}

// missedL1 is a read that L1 has no FRESH answer for: why. unproven says that what the read asks for could not be
// proven.
func (c *Cache[V]) missedL1(id string, r *reading, unproven error) Miss {
	poll, now := c.Tracker.Latest(), c.Tracker.Now()
	m := Miss{At: now, Known: noInstant}
	if poll != nil {
		m.Known = poll.Sent
	}
	it, _ := c.l1.get(id)
	switch {
	case it == nil:
		m.L1 = StepNothing
		return m
	case it.generation != c.generation():
		m.L1 = StepGeneration
		return m
	case now >= it.expires:
		m.L1 = StepExpired
		return m
	}
	s := c.Tracker.Refusal(it.scopes[viewScope], it.scopes, it.snapshot)
	switch {
	case s.Refused != coherence.NotRefused:
		m.L1, m.Refused, m.XID = StepChanged, s.Refused, s.By.Lacks
		if s.Scope >= 0 {
			m.Scope = it.scopes[s.Scope]
		}
	case unproven == nil && r.proven(poll, now):
		m.L1 = StepJust
	default:
		m.L1 = StepUnproven
	}
	return m
}

// ended keeps how the read of the id went: with the answer, or the error, and by way of the flight, nil if there was none.
func (c *Cache[V]) ended(id string, m Miss, f *flight[V], answer *Result[V], err error) {
	if f != nil {
		m.L2, m.Lease, m.Owner, m.Source = f.course.l2.met(), f.course.lease.met(), f.course.owner.met(), f.course.source.met()
	}
	if m.Failure = failureOf(err); err == nil {
		m.Tier, m.Label = answer.Tier, LabelStale
		switch {
		case answer.Fresh:
			m.Label = LabelFresh
		case answer.Grace > 0:
			m.Label = LabelGraced
		}
	}
	c.misses.keep(id, m)
}

// Bounds of what a cache remembers of misses.
const (
	missSets = 128
	missWays = 8 // misses of a set; of more the oldest goes
)

// misses are the last misses of up to missSets*missWays ids, in about 80 bytes each. They hold no ids, only their
// hashes: of two with one hash the last is told for both.
type misses struct {
	seed maphash.Seed
	mu   sync.Mutex
	sets [missSets]*[missWays]missOf // nil = nothing missed so far
}

// missOf is a miss of the id with the hash; At is 0 where there is none.
type missOf struct {
	hash uint64
	Miss
}

// keep puts the miss in the place of the id's last, or of the oldest in its set.
func (t *misses) keep(id string, m Miss) {
	hash := maphash.String(t.seed, id)
	t.mu.Lock()
	defer t.mu.Unlock()
	set := &t.sets[hash%missSets]
	if *set == nil {
		*set = new([missWays]missOf)
	}
	oldest := &(*set)[0]
	for i := range *set {
		at := &(*set)[i]
		if at.hash == hash {
			oldest = at
			break
		}
		if at.At < oldest.At {
			oldest = at
		}
	}
	*oldest = missOf{hash, m}
}

// last is the id's last miss that is remembered.
func (t *misses) last(id string) (Miss, bool) {
	hash := maphash.String(t.seed, id)
	t.mu.Lock()
	defer t.mu.Unlock()
	if set := t.sets[hash%missSets]; set != nil {
		for i := range set {
			if set[i].hash == hash {
				return set[i].Miss, true
			}
		}
	}
	return Miss{}, false
}
