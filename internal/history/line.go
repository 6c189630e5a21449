package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// always is before every instant of a run.
const always = time.Duration(math.MinInt64)

// line is the commits of one key. Place 0 is the state before the first: absent, and known from the beginning.
type line struct {
	key     uint64
	commits []Commit
	place   map[uint64]int // op -> place of its last commit
	// proof is when each commit is known to have happened by what somebody was told: the writer, or a reader.
	proof []time.Duration
	// sent is before which each cannot have happened: neither itself nor one before it had been sent.
	sent []time.Duration
	// later is the earliest acknowledgement among the commits behind each.
	later []time.Duration
	// known says, ascending, from when which place is known to be reached.
	known []reached
}

type reached struct {
	at    time.Duration
	place int
}

func newLine(key uint64) *line {
	return &line{key: key, commits: []Commit{{Key: key, Absent: true, Sent: always, Acked: always}}, place: map[uint64]int{}}
}

func (l *line) add(c Commit) {
	l.place[c.Op] = len(l.commits)
	l.commits = append(l.commits, c)
}

// close prepares what does not depend on answers.
func (l *line) close() {
	l.proof = make([]time.Duration, len(l.commits))
	l.later = make([]time.Duration, len(l.commits))
	l.sent = make([]time.Duration, len(l.commits))
	for i, c := range l.commits {
		l.sent[i] = c.Sent
		if i > 0 {
			l.sent[i] = max(c.Sent, l.sent[i-1])
		}
	}
	next := Never
	for i := len(l.commits) - 1; i >= 0; i-- {
		l.proof[i], l.later[i] = l.commits[i].Acked, next
		next = min(next, l.commits[i].Acked)
	}
}

// saw notes that an answer which was there at the instant showed the commit.
func (l *line) saw(place int, at time.Duration) { l.proof[place] = min(l.proof[place], at) }

// order prepares low, when all answers have been seen.
func (l *line) order() {
	l.known = l.known[:0]
	for i, at := range l.proof {
		if at != Never {
			l.known = append(l.known, reached{at, i})
		}
	}
	slices.SortFunc(l.known, func(a, b reached) int { return cmp.Compare(a.at, b.at) })
	highest := 0
	for i := range l.known {
		highest = max(highest, l.known[i].place)
		l.known[i].place = highest
	}
}

// low is the last place known to be reached before the instant.
func (l *line) low(before time.Duration) int {
	i, _ := slices.BinarySearchFunc(l.known, before, func(r reached, t time.Duration) int { return cmp.Compare(r.at, t) })
	if i == 0 {
		return 0
	}
	return l.known[i-1].place
}

// possible reports whether the commit may have happened by the instant.
func (l *line) possible(place int, by time.Duration) bool { return l.sent[place] <= by }

// absent is the first place from low on at which the key is absent and which may be reached by the instant, or -1.
func (l *line) absent(low int, by time.Duration) int {
	for i := low; i < len(l.commits); i++ {
		if l.commits[i].Absent && l.possible(i, by) {
			return i
		}
	}
	return -1
}

// lastAbsent is the last such place, or -1.
func (l *line) lastAbsent(by time.Duration) int {
	for i, c := range slices.Backward(l.commits) {
		if c.Absent && l.possible(i, by) {
			return i
		}
	}
	return -1
}

// outside is the first place from low on at which the key is not in the group and which may be reached by the
// instant, or -1.
func (l *line) outside(group uint64, low int, by time.Duration) int {
	for i := low; i < len(l.commits); i++ {
		if c := &l.commits[i]; (c.Absent || c.Group != group) && l.possible(i, by) {
			return i
		}
	}
	return -1
}

// behind is how long before the instant the first commit after the place had been acknowledged; 0 = none had.
func (l *line) behind(place int, at time.Duration) time.Duration {
	if next := l.later[place]; next < at {
		return at - next
	}
	return 0
}

// around describes the commits near two places, for people.
func (l *line) around(a, b int) string {
	from, to := max(min(a, b)-1, 0), min(max(a, b)+2, len(l.commits))
	var text strings.Builder
	for i := from; i < to; i++ {
		if i-from == 8 {
			fmt.Fprintf(&text, " ... (%d more)", to-i)
			break
		}
		c := &l.commits[i]
		state := fmt.Sprintf("op %d", c.Op)
		if i == 0 {
			state = "nothing yet"
		} else if c.Absent {
			state += " (deleted)"
		}
		fmt.Fprintf(&text, "; #%d %s", i, state)
		if i > 0 {
			text.WriteString(" sent " + c.Sent.String())
			if c.Acked == Never {
				text.WriteString(" never acknowledged")
			} else {
				text.WriteString(" acked " + c.Acked.String())
			}
		}
		if l.proof[i] != c.Acked {
			text.WriteString(" first seen " + l.proof[i].String())
		}
	}
	return text.String()
}
