package sim

import (
	"slices"
	"time"
)

// Shrink makes a plan smaller that fails, for as long as the result fails, too: without operations and
// faults, with fewer replicas and simpler settings. It tries at most the given number of plans.
func Shrink(p Plan, tries int, fails func(Plan) bool) Plan {
	try := func(candidate Plan) bool {
		if tries <= 0 {
			return false
		}
		tries--
		if fails(candidate) {
			p = candidate
			return true
		}
		return false
	}
	without := func(from, n int) Plan {
		smaller := p
		smaller.Ops = slices.Delete(slices.Clone(p.Ops), from, min(from+n, len(p.Ops)))
		return smaller
	}
	less := func() {
		for n := max(len(p.Ops)/2, 1); n > 0; n /= 2 {
			for from := 0; from < len(p.Ops); {
				if !try(without(from, n)) {
					from += n
				}
			}
		}
	}
	less()
	for _, simpler := range []func(*Setup){
		func(s *Setup) { s.Slow = 0 },
		func(s *Setup) { s.MaxEntries = 100 },
		func(s *Setup) { s.MaxChanges = 200_000 },
		func(s *Setup) { s.TTL = time.Hour },
		func(s *Setup) { s.Retention = time.Hour },
		func(s *Setup) { s.Scopes = 256 },
		func(s *Setup) { s.Interval = 250 * time.Millisecond },
		func(s *Setup) { s.PollTimeout = time.Second },
	} {
		candidate := p
		simpler(&candidate.Setup)
		if candidate.Setup != p.Setup {
			try(candidate)
		}
	}
	// No replica, row or list that nothing is said of.
	for _, fewer := range []struct {
		have *int
		used func(Op) int
	}{
		{&p.Replicas, func(op Op) int { return op.Replica + 1 }},
		{&p.Keys, func(op Op) int { return op.Key }},
	} {
		least := 1
		for _, op := range p.Ops {
			least = max(least, fewer.used(op))
		}
		for was := *fewer.have; least < was; least++ {
			candidate := p
			switch fewer.have {
			case &p.Replicas:
				candidate.Replicas = least
			default:
				candidate.Keys = least
			}
			if try(candidate) {
				break
			}
		}
	}
	for i := range p.Ops {
		for _, simpler := range []func(*Op){
			func(op *Op) { op.Session = 0 },
			func(op *Op) { op.Stale = 0 },
			func(op *Op) { op.For = 0 },
			func(op *Op) { op.Replica = min(op.Replica, 0) },
			func(op *Op) { op.At = op.At.Round(time.Millisecond) },
		} {
			candidate := p
			candidate.Ops = slices.Clone(p.Ops)
			simpler(&candidate.Ops[i])
			if candidate.Ops[i] != p.Ops[i] && slices.IsSortedFunc(candidate.Ops, earlier) {
				try(candidate)
			}
		}
	}
	less()
	return p
}
