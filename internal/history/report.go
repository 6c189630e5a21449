package history

import (
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Invariant is one that the judge knows; ARCHITECTURE.md says what each means.
type Invariant uint8

// The invariants.
const (
	I1 Invariant = iota + 1 // bounded staleness of FRESH
	I2                      // sessions
	I3                      // no going back
	I4                      // no phantoms
	I5                      // convergence

	I8 Invariant = 8 // several keys as of one moment
)

func (i Invariant) String() string { return fmt.Sprintf("I%d", uint8(i)) }

// Violation is one broken promise.
type Violation struct {
	Invariant Invariant
	Read      Read   // the answer, or that of a list about one key
	Why       string // for people
}

func (v Violation) String() string {
	label := "STALE"
	if v.Read.Fresh {
		label = "FRESH"
	}
	return fmt.Sprintf("%v: key %d, op %d, %s with budget %v from tier %d of replica %d (session %d), asked for at %v and there at %v: %s",
		v.Invariant, v.Read.Key, v.Read.Op, label, v.Read.Budget, v.Read.Tier, v.Read.Replica, v.Read.Session, v.Read.Invoked, v.Read.Returned, v.Why)
}

// Counts are of one phase, or of a whole run. A list counts as one answer.
type Counts struct {
	Reads, Fresh, Stale, Failures uint64 // Reads = Fresh + Stale
	Violations                    uint64
	staleness                     *hdrhistogram.Histogram // µs, of FRESH answers
}

// Staleness is how long, when a FRESH answer was asked for, a newer state than it shows had been acknowledged: the given
// percentile of all, and the longest.
func (c *Counts) Staleness(percentile float64) (at, longest time.Duration) {
	if c.staleness == nil {
		return 0, 0
	}
	return time.Duration(c.staleness.ValueAtPercentile(percentile)) * time.Microsecond, time.Duration(c.staleness.Max()) * time.Microsecond
}

// FreshShare is the part of answers and failures that is FRESH; 1 of nothing.
func (c *Counts) FreshShare() float64 {
	if all := c.Reads + c.Failures; all > 0 {
		return float64(c.Fresh) / float64(all)
	}
	return 1
}

// Report is the verdict on a history.
type Report struct {
	Counts
	Phases   []Counts // of History.Phases; one at least
	ByTier   map[uint8]uint64
	ByBudget map[time.Duration]uint64 // of FRESH answers
	Joints   uint64                   // answers about several keys as of one moment
	Swept    uint64                   // answers after the end that were compared
	Excused  uint64                   // answers, or what lists say of a key, that lost commits explain: not judged further
	// Disordered counts commits that were acknowledged before an earlier one of their key was sent: unless it is 0 the
	// history contradicts itself, and no verdict is sure.
	Disordered uint64
	// ByInvariant counts all violations; Kept are the first of each, in full.
	ByInvariant map[Invariant]uint64
	Kept        []Violation

	keep int
}

func newReport(h *History, keep int) *Report {
	r := &Report{
		Phases: make([]Counts, max(len(h.Phases), 1)), ByTier: map[uint8]uint64{}, ByBudget: map[time.Duration]uint64{},
		ByInvariant: map[Invariant]uint64{}, keep: keep,
	}
	r.staleness = newStaleness()
	return r
}

// longestStaleness bounds what the distribution tells apart.
const longestStaleness = time.Hour

func newStaleness() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, longestStaleness.Microseconds(), 2)
}

func (r *Report) phase(i uint16) *Counts { return &r.Phases[min(int(i), len(r.Phases)-1)] }

func (r *Report) count(read *Read) {
	for _, c := range [...]*Counts{&r.Counts, r.phase(read.Phase)} {
		c.Reads++
		if read.Fresh {
			c.Fresh++
		} else {
			c.Stale++
		}
	}
	r.ByTier[read.Tier]++
	if read.Fresh {
		r.ByBudget[read.Budget]++
	}
}

func (r *Report) stale(read *Read, by time.Duration) {
	us := min(by, longestStaleness).Microseconds()
	_ = r.staleness.RecordValue(us) // within its range
	p := r.phase(read.Phase)
	if p.staleness == nil {
		p.staleness = newStaleness()
	}
	_ = p.staleness.RecordValue(us)
}

func (r *Report) violate(i Invariant, read *Read, why string) {
	r.Violations++
	if i != I5 {
		r.phase(read.Phase).Violations++
	}
	if r.ByInvariant[i]++; r.ByInvariant[i] <= uint64(r.keep) {
		r.Kept = append(r.Kept, Violation{i, *read, why})
	}
}

// Merge adds the counts of another report, whose phases count to those of r by their index.
func (r *Report) Merge(o *Report) {
	add := func(c, d *Counts) {
		c.Reads += d.Reads
		c.Fresh += d.Fresh
		c.Stale += d.Stale
		c.Failures += d.Failures
		c.Violations += d.Violations
		if d.staleness != nil {
			if c.staleness == nil {
				c.staleness = newStaleness()
			}
			c.staleness.Merge(d.staleness)
		}
	}
	add(&r.Counts, &o.Counts)
	for i := range o.Phases {
		if i >= len(r.Phases) {
			r.Phases = append(r.Phases, Counts{})
		}
		add(&r.Phases[i], &o.Phases[i])
	}
	for k, n := range o.ByTier {
		r.ByTier[k] += n
	}
	for k, n := range o.ByBudget {
		r.ByBudget[k] += n
	}
	r.Joints += o.Joints
	r.Swept += o.Swept
	r.Excused += o.Excused
	r.Disordered += o.Disordered
	for i, n := range o.ByInvariant {
		r.ByInvariant[i] += n
	}
	for _, v := range o.Kept {
		if len(r.Kept) < 10*r.keep {
			r.Kept = append(r.Kept, v)
		}
	}
}
