package check

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	maxCommits = 1024 // kept one by one per product
	maxSteps   = 8    // kept per product and replica
	maxWaiting = 256  // answers per product
	maxReplica = 64   // replicas per product of which the steps are kept; I3 is not judged for more
)

// never is the acknowledgement time of a commit that has none (yet).
const never = time.Duration(math.MaxInt64)

// commit is an update whose revision is known.
type commit struct {
	revision int64
	sent     time.Duration
	acked    time.Duration // never = under way, or its outcome is unknown
}

// settled is the last time that the run's writer knows of the commit.
func (c commit) settled() time.Duration {
	if c.acked == never {
		return c.sent
	}
	return c.acked
}

// step is one step up of the FRESH answers of one replica.
type step struct {
	revision int64
	returned time.Duration // of the earliest answer with this revision
}

// product is all that is known of one product. Its owner holds the shard's lock.
type product struct {
	id       int64
	exists   bool  // it was declared
	declared int64 // revision before the run; 0 = none
	written  bool

	// base is the highest revision that any answer may show, however early: what was declared and
	// what was collapsed. floor is the highest collapsed commit that was acknowledged.
	base    int64
	floor   commit
	commits []commit // by revision, one each; younger than the window

	inflight []*Write // begun, not ended
	// unnamed is how many writes of unknown outcome have no known revision either; unnamedSince is
	// when the first of them was sent.
	unnamed      int64
	unnamedSince time.Duration

	waiting []Read            // answers to judge when the writes around them have ended
	steps   map[string][]step // replica -> steps, ascending in both fields

	ackedWrites, unknownWrites int64
	highest                    int64 // acknowledged
	phantoms                   uint64
}

func without(ws []*Write, w *Write) []*Write {
	return slices.DeleteFunc(ws, func(x *Write) bool { return x == w })
}

func (p *product) begin(w *Write) {
	p.written = true
	p.inflight = append(p.inflight, w)
	if w.revision > 0 {
		p.put(commit{w.revision, w.sent, never})
	}
}

// acked puts the commit in its place. A revision acknowledged twice is a violation: Postgres forgot
// the first. One that an unknown write had shows that this other write never happened.
func (p *product) acked(w *Write, revision int64, at time.Duration) (Violation, bool) {
	if w.revision > 0 && w.revision != revision {
		p.drop(w)
	}
	p.ackedWrites++
	p.highest = max(p.highest, revision)
	i, found := p.find(revision)
	if twice := found && p.commits[i].acked != never; twice {
		return Violation{
			Invariant: Lost, ID: p.id, Revision: revision, Expected: revision + 1, Invoked: w.sent, Returned: at,
			Commit: revision, Acked: p.commits[i].acked,
			Detail: fmt.Sprintf("revision %d was acknowledged at %v to one write and at %v to another: the first is lost", revision, p.commits[i].acked, at),
		}, true
	}
	p.put(commit{revision, w.sent, at})
	return Violation{}, false
}

func (p *product) aborted(w *Write) {
	if w.revision > 0 {
		p.drop(w)
	}
}

func (p *product) unknown(w *Write, revision int64) {
	p.unknownWrites++
	switch {
	case w.revision > 0: // stays in commits, never acknowledged
	case revision > 0:
		if _, found := p.find(revision); !found {
			p.put(commit{revision, w.sent, never})
		}
	default:
		if p.unnamed == 0 || w.sent < p.unnamedSince {
			p.unnamedSince = w.sent
		}
		p.unnamed++
	}
}

func (p *product) find(revision int64) (int, bool) {
	return slices.BinarySearchFunc(p.commits, revision, func(c commit, r int64) int { return cmp.Compare(c.revision, r) })
}

// put adds the commit, in the place of an unacknowledged one with the same revision.
func (p *product) put(c commit) {
	i, found := p.find(c.revision)
	switch {
	case !found:
		p.commits = slices.Insert(p.commits, i, c)
	case p.commits[i].acked == never:
		p.commits[i] = c
	}
	if len(p.commits) > maxCommits {
		p.collapse(len(p.commits) - maxCommits)
	}
}

// drop takes away the commit of a write that did not happen.
func (p *product) drop(w *Write) {
	if i, found := p.find(w.revision); found && p.commits[i].acked == never && p.commits[i].sent == w.sent {
		p.commits = slices.Delete(p.commits, i, i+1)
	}
}

// prune collapses the commits that were settled before the horizon.
func (p *product) prune(horizon time.Duration) {
	n := 0
	for n < len(p.commits) && p.commits[n].settled() < horizon {
		n++
	}
	if n > 0 {
		p.collapse(n)
	}
}

// collapse keeps the first n commits as their highest only.
func (p *product) collapse(n int) {
	for _, c := range p.commits[:n] {
		p.base = max(p.base, c.revision)
		if c.acked != never && c.revision > p.floor.revision {
			p.floor = c
		}
	}
	p.commits = slices.Delete(p.commits, 0, n)
}

// unsettled reports whether a write that the answer may show, or may have to show, has no outcome.
func (p *product) unsettled(r Read) bool {
	return slices.ContainsFunc(p.inflight, func(w *Write) bool { return w.sent < r.Returned })
}

// settled takes the answers out of waiting whose writes have all ended.
func (p *product) settled() []Read {
	if len(p.waiting) == 0 {
		return nil
	}
	var ready []Read
	p.waiting = slices.DeleteFunc(p.waiting, func(r Read) bool {
		if p.unsettled(r) {
			return false
		}
		ready = append(ready, r)
		return true
	})
	return ready
}

// phantom is I4: could the answered revision have been committed before the answer returned?
func (p *product) phantom(r Read) (Violation, bool) {
	v := Violation{
		Invariant: I4, ID: p.id, Replica: r.Replica, Revision: r.Revision, Fresh: r.Fresh, List: r.List,
		Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned,
	}
	if r.Revision == 0 {
		v.Expected = p.base
		v.Detail = "answered to be absent, though it is never deleted"
		return v, p.exists
	}
	if i, known := p.find(r.Revision); known {
		v.Expected = r.Revision - 1
		v.Detail = fmt.Sprintf("the commit was sent at %v, after the answer returned at %v", p.commits[i].sent, r.Returned)
		return v, p.commits[i].sent >= r.Returned
	}
	// Revisions are dense: whatever is below the highest one sent was committed before it.
	possible := p.base
	for _, c := range slices.Backward(p.commits) {
		if c.sent < r.Returned {
			possible = max(possible, c.revision)
			break
		}
	}
	if p.unnamed > 0 && p.unnamedSince < r.Returned {
		possible += p.unnamed
	}
	for _, w := range p.inflight {
		if w.revision == 0 && w.sent < r.Returned {
			possible++
		}
	}
	if !p.exists && p.commits == nil && p.unnamed == 0 && len(p.inflight) == 0 {
		v.Detail = "the product does not exist"
	} else {
		v.Detail = fmt.Sprintf("no commit of a revision over %d had been sent when the answer returned", possible)
	}
	v.Expected = possible
	return v, r.Revision > possible
}

// late is I1: was a higher revision acknowledged before the read's budget began?
func (p *product) late(r Read) (Violation, bool) {
	deadline := r.Invoked - r.Budget
	newest := commit{}
	if p.floor.acked < deadline {
		newest = p.floor
	}
	for _, c := range slices.Backward(p.commits) {
		if c.acked < deadline {
			if c.revision > newest.revision {
				newest = c
			}
			break
		}
	}
	if newest.revision <= r.Revision {
		return Violation{}, false
	}
	behind := p.behind(r)
	return Violation{
		Invariant: I1, ID: p.id, Replica: r.Replica, Revision: r.Revision, Expected: newest.revision, Fresh: r.Fresh, List: r.List,
		Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned, Commit: newest.revision, Acked: newest.acked,
		Detail: fmt.Sprintf("FRESH within %v, but behind by %v: revision %d was acknowledged at %v, the read was sent at %v", r.Budget, behind, newest.revision, newest.acked, r.Invoked),
	}, true
}

// behind is how long before the read was sent the first commit above its revision had been
// acknowledged; 0 = there was none. For an answer below the window it is a lower bound.
func (p *product) behind(r Read) time.Duration {
	first := r.Invoked
	if p.floor.revision > r.Revision {
		first = min(first, p.floor.acked)
	}
	for _, c := range slices.Backward(p.commits) {
		if c.revision <= r.Revision {
			break
		}
		first = min(first, c.acked)
	}
	return r.Invoked - first
}

// order is I2 and I3, which need nothing but answers, and takes note of a FRESH one.
func (p *product) order(r Read) []Violation {
	if !r.Fresh || r.Revision == 0 {
		return nil
	}
	v := Violation{
		ID: p.id, Replica: r.Replica, Revision: r.Revision, Fresh: r.Fresh, List: r.List,
		Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned,
	}
	var found []Violation
	if r.Revision < r.Wrote {
		v.Invariant, v.Expected = I2, r.Wrote
		v.Detail = fmt.Sprintf("the read carried the token of the write of revision %d", r.Wrote)
		found = append(found, v)
	}
	if r.Revision < r.Saw {
		v.Invariant, v.Expected = I3, r.Saw
		v.Detail = fmt.Sprintf("the read carried the token of an answer with revision %d", r.Saw)
		found = append(found, v)
	}
	if r.Replica == "" || r.List {
		return found
	}
	for _, s := range slices.Backward(p.steps[r.Replica]) {
		if s.returned < r.Invoked {
			if r.Revision < s.revision {
				v.Invariant, v.Expected = I3, s.revision
				v.Detail = fmt.Sprintf("the replica went backwards: it had answered revision %d by %v, before this read was sent", s.revision, s.returned)
				found = append(found, v)
			}
			break
		}
	}
	p.climb(r)
	return found
}

// climb keeps the steps ascending in revision and time: a step that is not higher than an earlier
// one says nothing.
func (p *product) climb(r Read) {
	steps := p.steps[r.Replica]
	i := len(steps)
	for i > 0 && steps[i-1].returned > r.Returned {
		i--
	}
	if i > 0 && steps[i-1].revision >= r.Revision {
		return
	}
	end := i
	for end < len(steps) && steps[end].revision <= r.Revision {
		end++
	}
	steps = slices.Replace(steps, i, end, step{r.Revision, r.Returned})
	if len(steps) > maxSteps {
		steps = slices.Delete(steps, 0, len(steps)-maxSteps)
	}
	if p.steps == nil {
		p.steps = make(map[string][]step)
	}
	if len(p.steps) >= maxReplica && p.steps[r.Replica] == nil {
		return
	}
	p.steps[r.Replica] = steps
}

// foreign is how many revisions in Postgres no write of the run explains; 1 when the product came or
// went without a write of the run, which has none of that kind.
func (p *product) foreign(final int64) int64 {
	if p.exists != (final > 0) {
		return 1
	}
	return max(0, final-p.declared-p.ackedWrites-p.unknownWrites)
}

// lost says whether an acknowledged update is missing from Postgres. A product that is gone was
// deleted by another writer.
func (p *product) lost(final int64) (Violation, bool) {
	if final == 0 || final >= p.highest {
		return Violation{}, false
	}
	return Violation{
		Invariant: Lost, ID: p.id, Revision: final, Expected: p.highest,
		Detail: fmt.Sprintf("revision %d was acknowledged, Postgres ends with %d", p.highest, final),
	}, true
}
