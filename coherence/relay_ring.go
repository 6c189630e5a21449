package coherence

import "time"

const (
	// ringChanges bounds the changes that a ring holds, 24 bytes each.
	ringChanges = maxRelayChanges
	// ringMarks bounds the polls among them, and ringApart is the least time between two: the ring
	// reaches back at least the product of both, unless there are too many changes.
	ringMarks = 64
	ringApart = 100 * time.Millisecond
)

// ring is what the last polls of one log brought: from it follows what any poll would have brought that
// started at a snapshot not older than the base. It is not safe for concurrent use. The zero ring knows
// nothing.
type ring struct {
	base    Snapshot // changes that it does not see and last sees are in changes; no timeline = none
	last    Snapshot // of the latest poll
	horizon Snapshot // of the latest poll
	// generations of the latest poll; nil = the log has none.
	generations *Generations
	changes     []Change
	marks       []mark // where the ring can be cut, oldest first
}

// mark is a poll: the changes before end are those that came by it.
type mark struct {
	snapshot Snapshot
	end      int
	at       time.Time
}

// put takes a poll that came back and what it had been asked to start from.
func (r *ring) put(since Snapshot, p PollResult, now time.Time) {
	if p.Overrun || !r.last.Equal(since) || !p.Snapshot.Includes(since) {
		// Not the continuation of what is known: a first poll, another timeline, or a gap.
		*r = ring{base: p.Snapshot, last: p.Snapshot, horizon: p.Horizon, generations: p.Generations}
		return
	}
	r.changes = append(r.changes, p.Changes...)
	r.last, r.horizon, r.generations = p.Snapshot, p.Horizon, p.Generations
	if n := len(r.marks); n == 0 || now.Sub(r.marks[n-1].at) >= ringApart {
		r.marks = append(r.marks, mark{at: now})
	}
	m := &r.marks[len(r.marks)-1]
	m.snapshot, m.end = p.Snapshot, len(r.changes)
	for len(r.marks) > ringMarks || (len(r.changes) > ringChanges && len(r.marks) > 0) {
		r.cut()
	}
}

// cut forgets the oldest poll.
func (r *ring) cut() {
	oldest := r.marks[0]
	r.base = oldest.snapshot
	r.changes = append(r.changes[:0], r.changes[oldest.end:]...)
	r.marks = append(r.marks[:0], r.marks[1:]...)
	for i := range r.marks {
		r.marks[i].end -= oldest.end
	}
}

// since is what a poll that started at the snapshot would have brought, had it been the latest poll.
// false: the ring does not reach back so far, or is of another timeline.
func (r *ring) since(s Snapshot) (PollResult, bool) {
	if !s.Includes(r.base) {
		return PollResult{}, false
	}
	p := PollResult{Snapshot: r.last, Horizon: r.horizon, Generations: r.generations}
	if !p.Snapshot.Includes(s) {
		return PollResult{}, false
	}
	for _, c := range r.changes {
		if !s.Sees(c.XID) {
			p.Changes = append(p.Changes, c)
		}
	}
	return p, true
}
