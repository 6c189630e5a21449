package coherence

import (
	"math"
	"time"
)

// Refusal is why a value is not valid. Of several the highest says most.
type Refusal uint8

// The refusals.
const (
	NotRefused Refusal = iota
	// RefusedGrace: the value lacks nothing but changes in their grace.
	RefusedGrace
	// RefusedNoted: this node has served a newer one.
	RefusedNoted
	// RefusedForgotten: the value is older than what the directory has no room to tell of the scope.
	RefusedForgotten
	// RefusedEarlier: the value is older than changes of the scope that are no longer told apart.
	RefusedEarlier
	// RefusedFlushed: the value is older than what the node knows everything from on: the log's beginning when it
	// started, or a moment at which it may have missed something.
	RefusedFlushed
	// RefusedHistory: the value was read in another history of transaction ids than the node follows, or in none, or the
	// node follows none yet.
	RefusedHistory
	// RefusedChanged: the value does not see a change.
	RefusedChanged
	// RefusedDoubt: changes of the scope may be missing in the log.
	RefusedDoubt
)

// String is one word for JSON and tools; "" for NotRefused.
func (r Refusal) String() string {
	switch r {
	case NotRefused:
		return ""
	case RefusedGrace:
		return "grace"
	case RefusedNoted:
		return "noted"
	case RefusedForgotten:
		return "forgotten"
	case RefusedEarlier:
		return "earlier"
	case RefusedFlushed:
		return "flushed"
	case RefusedHistory:
		return "history"
	case RefusedChanged:
		return "changed"
	case RefusedDoubt:
		return "doubt"
	}
	return "unknown"
}

// ScopeStanding is what is known of one scope, and how a value stands to it. It is for people: nothing is decided by it.
type ScopeStanding struct {
	// Refused is why the value is not valid for the scope.
	Refused Refusal
	// Last is the transaction whose change was heard of last; 0 = none is known, or it is no longer told apart.
	Last uint64
	// Heard is when this node heard of the last change, to ten milliseconds; 0 = it knows of none, or not when.
	Heard Instant
	// Lacks is the transaction of a change that the value does not see, the last that was heard of; 0 = none is known.
	Lacks uint64
	// Since is where the refusal begins: with RefusedForgotten and RefusedEarlier when the poll was sent that a value
	// must not be older than, with RefusedFlushed when that was found out, with RefusedDoubt since when changes may be
	// missing. 0 = not known.
	Since Instant
	// Grace is that of the changes which the value lacks, with RefusedGrace.
	Grace Grace
}

// Standing is how a value stands to what the node knows.
type Standing struct {
	// Refused is why the value is not valid; NotRefused iff [Tracker.Valid] says at the same moment that it is.
	Refused Refusal
	// Scope is the place of a scope that refuses it so, and By how it stands to that; -1 and zero when it is not refused,
	// or for what is of no scope.
	Scope int
	By    ScopeStanding
	// Scopes are those of the value, in their order.
	Scopes []ScopeStanding
}

// Explain says how a value read under the snapshot stands to all of its scopes. It changes nothing.
func (t *Tracker) Explain(value ScopeHash, scopes []ScopeHash, snapshot Snapshot) Standing {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]ScopeStanding, len(scopes))
	s := t.explain(value, scopes, snapshot, all)
	s.Scopes = all
	return s
}

// Refusal is [Tracker.Explain] without the standing to each scope.
func (t *Tracker) Refusal(value ScopeHash, scopes []ScopeHash, snapshot Snapshot) Standing {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.valid(value, scopes, snapshot) {
		return Standing{Scope: -1}
	}
	return t.explain(value, scopes, snapshot, nil)
}

// explain puts the standing to each scope into all, if that is not nil. The caller holds mu.
func (t *Tracker) explain(value ScopeHash, scopes []ScopeHash, snapshot Snapshot, all []ScopeStanding) Standing {
	whole := Standing{Scope: -1}
	if !t.dir.CheckNote(value, snapshot) {
		whole.Refused = t.dir.outside(snapshot, RefusedNoted)
	}
	now := t.Now()
	for i, scope := range scopes {
		s := t.dir.Explain(scope, snapshot, now)
		if since, doubted := t.Doubted(scope); doubted {
			s.Refused, s.Since = RefusedDoubt, since
		}
		if all != nil {
			all[i] = s
		}
		if s.Refused > whole.Refused || (s.Refused == whole.Refused && whole.Scope < 0 && s.Refused != NotRefused) {
			whole.Refused, whole.Scope, whole.By = s.Refused, i, s
		}
	}
	return whole
}

// Explain says what is known of the scope, and how a value read under the snapshot stands to it: it is refused iff
// [Directory.Check] says no. It changes nothing.
func (d *Directory) Explain(scope ScopeHash, value Snapshot, now Instant) ScopeStanding {
	var s ScopeStanding
	set := &d.sets[uint64(scope)&d.mask]
	c := set.find(scope)
	if c != nil {
		s.Heard = instantOf(c.learned)
		for _, xid := range c.xids[:c.n] {
			s.Last = xid
			if !value.Sees(xid) {
				s.Lacks = xid
			}
		}
	}
	graced := false
	for _, g := range d.graced[scope] {
		if heard := instantOf(g.learned); heard >= s.Heard {
			s.Last, s.Heard = g.xid, heard
		}
		if graced = graced || !value.Sees(g.xid); graced && s.Lacks == 0 {
			s.Lacks = g.xid
		}
	}
	s.Refused = d.outside(value, d.judge(scope, value))
	switch {
	case s.Refused == RefusedHistory:
		s.Lacks = 0 // transactions of two histories cannot be compared
	case s.Refused == NotRefused && graced:
		if grace, ok := d.CheckGrace(scope, value, now); ok {
			s.Refused, s.Grace = RefusedGrace, grace
		} else {
			s.Refused = RefusedChanged
		}
	case s.Lacks != 0:
		s.Refused = RefusedChanged
	case s.Refused == RefusedFlushed:
		s.Since = d.flushed
	case s.Refused == RefusedForgotten && set.floor != nil:
		s.Since = set.floor.Sent
	case s.Refused == RefusedEarlier && c.floor != nil:
		s.Since = c.floor.Sent
	}
	return s
}

// outside is the refusal, or RefusedFlushed or RefusedHistory if the snapshot cannot be compared with what is known.
func (d *Directory) outside(value Snapshot, r Refusal) Refusal {
	switch {
	case value.Includes(d.floor):
		return r
	case value.Timeline != d.floor.Timeline || value.Timeline == 0:
		return RefusedHistory
	}
	return RefusedFlushed
}

// moments are how exactly a directory remembers when it heard of a change.
const moments = 10 * time.Millisecond

// momentOf is the instant in four bytes: in moments, from 1 on, for 497 days; 0 = not known.
func momentOf(at Instant) uint32 {
	if n := int64(at) / int64(moments); at != 0 && n < math.MaxUint32 {
		return uint32(n) + 1
	}
	return 0
}

func instantOf(moment uint32) Instant {
	if moment == 0 {
		return 0
	}
	return max(1, Instant(moment-1)*Instant(moments))
}
