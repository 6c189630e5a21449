package check

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Summary is what a [Checker] has seen and found so far.
type Summary struct {
	Reads uint64 // answers observed
	Fresh uint64 // those labelled FRESH

	Writes  uint64 // begun
	Acked   uint64
	Aborted uint64 // certainly without effect
	Unknown uint64 // may have had one

	Violations uint64               // of all invariants
	Counts     map[Invariant]uint64 // by invariant; none is absent
	First      []Violation          // the first found, at most Config.Keep

	// ForeignWrites is how many revisions in Postgres no write of the run explains; Excused how many
	// I4 verdicts were withdrawn because of them.
	ForeignWrites, Excused uint64
	Early                  uint64 // answers judged, leniently, before all was known
	Swept                  uint64 // answers of Converged

	// Staleness is the distribution over FRESH answers of the time from the acknowledgement of the
	// first commit that the answer lacks until the read was sent; 0 for an answer that lacks none.
	Staleness Quantiles
}

// Quantiles are points of a distribution of durations. All are 0 when Count is.
type Quantiles struct {
	Count               int64
	P50, P99, P999, Max time.Duration
}

// Summary may be called at any time; it is complete after Finish, Final and Converged.
func (c *Checker) Summary() Summary {
	t := &c.tally
	s := Summary{
		Reads: t.reads.Load(), Fresh: t.fresh.Load(),
		Writes: t.writes.Load(), Acked: t.acked.Load(), Aborted: t.aborted.Load(), Unknown: t.unknown.Load(),
		ForeignWrites: t.foreign.Load(), Early: t.early.Load(), Swept: t.swept.Load(),
		Staleness: c.staleness.quantiles(),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s.Excused = t.excused
	s.Counts = maps.Clone(t.counts)
	maps.DeleteFunc(s.Counts, func(_ Invariant, n uint64) bool { return n == 0 })
	for _, n := range s.Counts {
		s.Violations += n
	}
	s.First = slices.Clone(t.kept)
	return s
}

// staleness is a histogram of microseconds up to an hour, with the zeros, nearly all, counted aside.
type staleness struct {
	zeros atomic.Int64

	mu   sync.Mutex
	late *hdr.Histogram
}

func newStaleness() *staleness {
	return &staleness{late: hdr.New(1, time.Hour.Microseconds(), 3)}
}

func (s *staleness) add(d time.Duration) {
	if d <= 0 {
		s.zeros.Add(1)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The clamp makes every value one that the histogram takes.
	_ = s.late.RecordValue(min(max(d.Microseconds(), 1), time.Hour.Microseconds()))
}

func (s *staleness) quantiles() Quantiles {
	s.mu.Lock()
	h := s.late.Clone()
	s.mu.Unlock()
	if n := s.zeros.Load(); n > 0 {
		_ = h.RecordValues(0, n)
	}
	at := func(q float64) time.Duration { return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond }
	return Quantiles{Count: h.TotalCount(), P50: at(50), P99: at(99), P999: at(99.9), Max: time.Duration(h.Max()) * time.Microsecond}
}
