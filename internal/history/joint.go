package history

import (
	"fmt"
	"slices"
	"sort"
	"time"
)

// Joint is one answer about several keys that claims to show all of them as of one instant. Its other fields are
// those of [Read].
type Joint struct {
	Entries []Entry // Op 0 = the key was answered to be absent
	// Sum is what the keys were answered to hold together, Total what every commit leaves it at; both 0 = not told.
	Sum, Total int64
	Fresh      bool
	Phase      uint16
	Replica    uint32

	Budget, Invoked, Returned time.Duration
}

func (a *Joint) asRead(e Entry) Read {
	return Read{
		Key: e.Key, Op: e.Op, Fresh: a.Fresh, Phase: a.Phase, Replica: a.Replica,
		Budget: a.Budget, Invoked: a.Invoked, Returned: a.Returned,
	}
}

// joints judges I8, and of each key alone I1 and I4.
func (j *judge) joints() {
	pairs := pairs{}
	for i := range j.h.Joints {
		a := &j.h.Joints[i]
		head := a.asRead(Entry{})
		j.report.count(&head)
		j.report.Joints++
		if a.Sum != a.Total {
			j.report.violate(I8, &head, fmt.Sprintf("%d keys hold %d together, and every commit leaves %d", len(a.Entries), a.Sum, a.Total))
			continue
		}
		j.joint(a, pairs)
	}
}

// shownAt is what a joint answer says of one key.
type shownAt struct {
	line  *line
	entry Entry
	place int // the least that it can be of, for all that is known
	high  int // the last that it can be of
}

// joint looks for an instant at which all keys were in the state that the answer shows. It gives each key the least
// place that fits, and raises those that cannot be of one instant with the others, until nothing has to be raised or
// a key cannot: every rule says that some place of one key wants at least some place of another, so if there is an
// instant at all, no place is raised above it.
func (j *judge) joint(a *Joint, pairs pairs) {
	since := Always
	if a.Fresh {
		since = a.Invoked - a.Budget
	}
	all := make([]shownAt, 0, len(a.Entries))
	for _, e := range a.Entries {
		s := shownAt{line: j.lines[e.Key], entry: e}
		if j.o.Lossy && len(s.line.lost)+len(j.lost) > 0 {
			j.report.Excused++
			return
		}
		s.high = s.line.high(a.Returned)
		low := s.line.low(since)
		if s.place = s.line.next(claim{op: e.Op}, low); s.place > s.high {
			j.alone(a, &s, low)
			return
		}
		all = append(all, s)
	}
	for {
		// The instant is not before any of the places can have been reached.
		instant, latest := since, -1
		for i := range all {
			if sent := all[i].line.sent[all[i].place]; sent > instant {
				instant, latest = sent, i
			}
		}
		raised := false
		for i := range all {
			s := &all[i]
			bound, by := s.line.low(instant), latest
			for k := range all {
				with := all[k].place // a key that was answered twice shows one place
				if all[k].line != s.line {
					with = pairs.of(all[k].line, s.line).with(with)
				}
				if with > bound {
					bound, by = with, k
				}
			}
			if bound <= s.place {
				continue
			}
			if s.place = s.line.next(claim{op: s.entry.Op}, bound); s.place > s.high {
				j.apart(a, s, bound, &all[max(by, 0)])
				return
			}
			raised = true
		}
		if !raised {
			return
		}
	}
}

// alone notes that what the answer shows of the key breaks another promise.
func (j *judge) alone(a *Joint, s *shownAt, low int) {
	as, c := a.asRead(s.entry), claim{op: s.entry.Op}
	if s.line.next(c, 0) > s.high {
		j.report.violate(I4, &as, "no such state can have been when the answer was there"+s.line.around(s.high, s.high))
		return
	}
	shows := s.line.last(c, s.high)
	j.report.violate(I1, &as, fmt.Sprintf("it shows #%d at most, and #%d had been acknowledged before the read was sent, less its budget%s",
		shows, low, s.line.around(shows, low)))
}

// apart notes that the answer shows the key as it was before what it shows of another.
func (j *judge) apart(a *Joint, s *shownAt, bound int, other *shownAt) {
	as := a.asRead(s.entry)
	shows := s.line.last(claim{op: s.entry.Op}, s.high)
	j.report.violate(I8, &as, fmt.Sprintf("it shows #%d at most, and with #%d of key %d, which it shows as well, came #%d%s",
		shows, other.place, other.line.key, bound, s.line.around(shows, bound)))
}

// pair is the places of two keys that one write brought about.
type pair struct{ a, b int }

// together are the pairs of two keys, ascending by both: writes that change both have one order.
type together []pair

// with is the place of the second key that came with the place of the first, or with one before it; 0 = none.
func (t together) with(place int) int {
	i := sort.Search(len(t), func(i int) bool { return t[i].a > place })
	if i == 0 {
		return 0
	}
	return t[i-1].b
}

// pairs are those of all keys that were answered together: keys -> pairs.
type pairs map[[2]uint64]together

func (p pairs) of(a, b *line) together {
	keys := [2]uint64{a.key, b.key}
	t, known := p[keys]
	if known {
		return t
	}
	at := make(map[uint64]int, len(a.commits)) // op -> place of a
	for i, c := range a.commits {
		if c.Op != 0 {
			at[c.Op] = i
		}
	}
	for i, c := range b.commits {
		if place, both := at[c.Op]; both {
			t = append(t, pair{place, i})
		}
	}
	slices.SortFunc(t, func(x, y pair) int { return x.a - y.a })
	p[keys] = t
	return t
}
