package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/tiers"
)

// summary adds up outcomes.
type summary struct {
	histories, violations                                     int
	steps, reads, fresh, errors, writes, commits, lost, loads int
	graced                                                    int
	tiers                                                     [8]int
	faults                                                    [lastOp]int
	virtual                                                   time.Duration
}

func (s *summary) add(o *Outcome) {
	s.histories++
	s.violations += len(o.Violations)
	s.steps += o.Steps
	s.reads += o.Reads
	s.fresh += o.Fresh
	s.graced += o.Graced
	s.errors += o.Errors
	s.writes += o.Writes
	s.commits += o.Commits
	s.lost += o.Lost
	s.loads += o.Loads
	s.virtual += o.Virtual
	for i, n := range o.Tiers {
		s.tiers[i] += n
	}
	for i, n := range o.Faults {
		s.faults[i] += n
	}
}

func (s *summary) text(took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d histories in %v (%.0f a minute), %v of virtual time, %d steps\n", s.histories, took.Round(time.Millisecond),
		float64(s.histories)/took.Minutes(), s.virtual.Round(time.Second), s.steps)
	answered := max(s.reads-s.errors, 1)
	fmt.Fprintf(&b, "%d reads: %d FRESH (%.1f %%), %d STALE (%d of them in their grace), %d without an answer; %d loads\n", s.reads, s.fresh,
		100*float64(s.fresh)/float64(max(s.reads, 1)), answered-s.fresh, s.graced, s.errors, s.loads)
	for tier := tiers.TierL1; tier <= tiers.TierSource; tier++ {
		fmt.Fprintf(&b, "  %-7v %d\n", tier, s.tiers[tier])
	}
	fmt.Fprintf(&b, "%d writes, %d commits, %d of them lost in failovers\nfaults:\n", s.writes, s.commits, s.lost)
	for kind := lastWrite + 1; kind < lastOp; kind++ {
		fmt.Fprintf(&b, "  %-18v %d\n", kind, s.faults[kind])
	}
	fmt.Fprintf(&b, "violations: %d\n", s.violations)
	return b.String()
}
