package history

import (
	"math"
	"time"
)

// The ends of time.
const (
	// Never is the time of an acknowledgement that nobody got.
	Never = time.Duration(math.MaxInt64)
	// Always is when the state before the run was sent and acknowledged.
	Always = time.Duration(math.MinInt64)
)

// Commit is one committed change of one key. Times are of one monotonic clock that all observers share.
type Commit struct {
	Key, Op uint64 // Op: unique number of the write, above 0
	Absent  bool   // the key does not exist after it
	Group   uint64 // the list that the key belongs to after it; 0 = none
	// Sent: the commit happened after it. Acked: it happened before it; [Never] = nobody was told. Both [Always]: it is
	// the state from the beginning, so that no answer shows what was before.
	Sent, Acked time.Duration
	Session     uint64 // that wrote it; 0 = none
}

// Read is one answer about one key.
type Read struct {
	Key, Op uint64 // the write that made the state shown; Op 0 = the key was answered to be absent
	Fresh   bool   // the label
	Tier    uint8  // that answered; 0 = not told
	Phase   uint16 // index into History.Phases
	Replica uint32 // that answered; a replica that was started again is another
	Session uint64 // whose token it carried; 0 = none
	// Budget is what was asked for, Invoked when, Returned when the answer was there.
	Budget, Invoked, Returned time.Duration
}

// List is one answer about all keys of a group. Its fields are those of [Read].
type List struct {
	Group   uint64
	Entries []Entry
	Fresh   bool
	Tier    uint8
	Phase   uint16
	Replica uint32
	Session uint64

	Budget, Invoked, Returned time.Duration
}

// Entry is a key in a list, and the write that made its state.
type Entry struct{ Key, Op uint64 }

// Failure is a read that had no answer.
type Failure struct {
	At      time.Duration
	Replica uint32
	Phase   uint16
}

// Phase is a time of a run that is reported apart.
type Phase struct {
	Name     string
	From, To time.Duration
}

// History is what happened in one run, or in a part of it.
type History struct {
	// Commits, those of each key in the order in which they happened. The state of a key before its first is
	// absent.
	Commits []Commit
	// Lost are writes that were acknowledged and are not among Commits. Each may have done anything to its key; key 0 =
	// to any.
	Lost []Commit
	// Unsettled are writes that are not among Commits and of which nobody knows whether they ever had an effect. See
	// Options.Lossy.
	Unsettled []Commit
	Reads     []Read
	Lists     []List
	Joints    []Joint
	Failures  []Failure
	// Sweep are answers from after the end of all writes and faults: they must show the last commits (I5).
	Sweep      []Read
	SweepLists []List
	// Phases, ascending and apart; nil = one without a name. [History.Assign] puts answers into them.
	Phases []Phase
}

// Assign puts each answer into the phase in which it was asked for; one between two phases counts to the
// earlier.
func (h *History) Assign(phases []Phase) {
	h.Phases = phases
	of := func(at time.Duration) uint16 {
		i := 0
		for i+1 < len(phases) && phases[i+1].From <= at {
			i++
		}
		return uint16(i)
	}
	for i := range h.Reads {
		h.Reads[i].Phase = of(h.Reads[i].Invoked)
	}
	for i := range h.Lists {
		h.Lists[i].Phase = of(h.Lists[i].Invoked)
	}
	for i := range h.Joints {
		h.Joints[i].Phase = of(h.Joints[i].Invoked)
	}
	for i := range h.Failures {
		h.Failures[i].Phase = of(h.Failures[i].At)
	}
}

// Recovered is how long after the given instant the share of FRESH answers stays at least the given one in every window
// of 100 ms that begins before until and has answers or failures. It reports false if it never does.
func (h *History) Recovered(from, until time.Duration, share float64) (time.Duration, bool) {
	const window = 100 * time.Millisecond
	if until <= from {
		return 0, false
	}
	n := int((until - from + window - 1) / window)
	fresh, all := make([]float64, n), make([]float64, n)
	count := func(at time.Duration, isFresh bool) {
		if at < from || at >= until {
			return
		}
		i := (at - from) / window
		all[i]++
		if isFresh {
			fresh[i]++
		}
	}
	for i := range h.Reads {
		count(h.Reads[i].Invoked, h.Reads[i].Fresh)
	}
	for i := range h.Lists {
		count(h.Lists[i].Invoked, h.Lists[i].Fresh)
	}
	for _, f := range h.Failures {
		count(f.At, false)
	}
	good := n
	for good > 0 && fresh[good-1] >= share*all[good-1] {
		good--
	}
	return time.Duration(good) * window, good < n
}
