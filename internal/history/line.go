package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// line is the commits of one key. Place 0 is the state before the first: absent, and known from the beginning.
type line struct {
	key     uint64
	commits []Commit // the group of an absent one is 0
	lost    []Commit // what a failover may have lost of this key
	first   int      // the least place that an answer can show
	// sent is when each place can have been reached at the earliest, acked when it was at the latest, by what writers
	// know of it and of its neighbours: both ascend.
	sent, acked []time.Duration
	ops         []opPlace // by op and place
	absent      []int     // places
	// before and after are the nearest places with another group than each; -1 and len(commits) = none.
	before, after []int
}

type opPlace struct {
	op    uint64
	place int
}

func newLine(key uint64) *line {
	return &line{key: key, commits: []Commit{{Key: key, Absent: true, Sent: Always, Acked: Always}}}
}

func (l *line) add(c Commit) {
	if c.Absent {
		c.Group = 0
	}
	l.commits = append(l.commits, c)
}

// close prepares the line for questions and returns how many of its commits contradict each other.
func (l *line) close() (disordered uint64) {
	n := len(l.commits)
	l.sent, l.acked = make([]time.Duration, n), make([]time.Duration, n)
	l.before, l.after = make([]int, n), make([]int, n)
	latest := Always
	for i, c := range l.commits {
		if c.Acked < latest {
			disordered++
		}
		latest = max(latest, c.Sent)
		l.sent[i] = latest
		if i > 0 && c.Acked == Always {
			l.first = i
		}
		if c.Absent {
			l.absent = append(l.absent, i)
		} else {
			l.ops = append(l.ops, opPlace{c.Op, i})
		}
		l.before[i] = i - 1
		if i > 0 && l.commits[i-1].Group == c.Group {
			l.before[i] = l.before[i-1]
		}
	}
	slices.SortFunc(l.ops, func(a, b opPlace) int { return cmp.Or(cmp.Compare(a.op, b.op), cmp.Compare(a.place, b.place)) })
	earliest := Never
	for i := n - 1; i >= 0; i-- {
		earliest = min(earliest, l.commits[i].Acked)
		l.acked[i] = earliest
		l.after[i] = i + 1
		if i+1 < n && l.commits[i+1].Group == l.commits[i].Group {
			l.after[i] = l.after[i+1]
		}
	}
	return disordered
}

// low is the last place that was acknowledged before the instant.
func (l *line) low(before time.Duration) int {
	return max(l.first, sort.Search(len(l.acked), func(i int) bool { return l.acked[i] >= before })-1)
}

// high is the last place that may have been reached by the instant.
func (l *line) high(by time.Duration) int {
	return sort.Search(len(l.sent), func(i int) bool { return l.sent[i] > by }) - 1
}

// A claim is what an answer says of a key: that its state was made by op; with op 0 that it is absent, or, if group is
// not 0, anything outside of the group. With op and group, that it was in the group as well.
type claim struct{ op, group uint64 }

// next is the first place from the given one on that the claim is true of; len(commits) = none.
func (l *line) next(c claim, from int) int {
	none := len(l.commits)
	from = max(from, l.first)
	switch {
	case from >= none:
		return none
	case c.op != 0:
		i, _ := slices.BinarySearchFunc(l.ops, opPlace{c.op, from}, func(a, b opPlace) int {
			return cmp.Or(cmp.Compare(a.op, b.op), cmp.Compare(a.place, b.place))
		})
		for ; i < len(l.ops) && l.ops[i].op == c.op; i++ {
			if p := l.ops[i].place; c.group == 0 || l.commits[p].Group == c.group {
				return p
			}
		}
		return none
	case c.group != 0:
		if l.commits[from].Group != c.group {
			return from
		}
		return l.after[from]
	default:
		i, _ := slices.BinarySearch(l.absent, from)
		if i == len(l.absent) {
			return none
		}
		return l.absent[i]
	}
}

// last is the last place up to the given one that the claim is true of. There is one.
func (l *line) last(c claim, to int) int {
	switch {
	case c.op != 0:
		p := l.next(c, 0)
		for q := p; q <= to; q = l.next(c, q+1) {
			p = q
		}
		return p
	case c.group != 0:
		if l.commits[to].Group != c.group {
			return to
		}
		return l.before[to]
	default:
		i, found := slices.BinarySearch(l.absent, to)
		if !found {
			i--
		}
		return l.absent[i]
	}
}

// behind is how long before the instant the first commit after the place had been acknowledged; 0 = none had.
func (l *line) behind(place int, at time.Duration) time.Duration {
	if place+1 < len(l.acked) && l.acked[place+1] < at {
		return at - l.acked[place+1]
	}
	return 0
}

// around describes the commits near two places, for people.
func (l *line) around(a, b int) string {
	from, to := max(min(a, b)-1, 0), min(max(a, b)+2, len(l.commits))
	var text strings.Builder
	for i := from; i < to; i++ {
		if i-from == 8 {
			fmt.Fprintf(&text, "; ... (%d more)", to-i)
			break
		}
		c := &l.commits[i]
		state := fmt.Sprintf("op %d", c.Op)
		switch {
		case i == 0:
			state = "nothing yet"
		case c.Absent:
			state += " (deleted)"
		case c.Group != 0:
			state += fmt.Sprintf(" in group %d", c.Group)
		}
		fmt.Fprintf(&text, "; #%d %s", i, state)
		if i > 0 {
			text.WriteString(", sent " + instant(c.Sent) + ", acked " + instant(c.Acked))
		}
	}
	return text.String()
}

func instant(t time.Duration) string {
	switch t {
	case Always:
		return "always"
	case Never:
		return "never"
	default:
		return t.String()
	}
}
