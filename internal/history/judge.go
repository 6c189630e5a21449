package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Options say what else is known of a run. The zero value is good.
type Options struct {
	// Keep is how many violations of each invariant are kept in full; all are counted. 0 = 10.
	Keep int
	// LostUntil: commits in History.Lost may be shown FRESH by answers asked for before it and the budget; it is when the
	// server that had them was replaced. Without lost commits it means nothing.
	LostUntil time.Duration
}

// Judge gives the verdict on a history. It takes time in the order of n log n, and does not change the history.
func Judge(h *History, o Options) *Report {
	j := &judge{h: h, o: o, report: newReport(h, cmp.Or(o.Keep, 10)), lines: map[uint64]*line{}, groups: map[uint64][]*line{}}
	j.readCommits()
	j.resolve()
	for _, l := range j.lines {
		l.order()
	}
	for i := range h.Reads {
		j.read(&h.Reads[i], j.shown[i])
	}
	for i := range h.Lists {
		j.list(&h.Lists[i])
	}
	j.replicas()
	j.sessions()
	j.sweep()
	j.report.Failures += uint64(len(h.Failures))
	for _, f := range h.Failures {
		j.report.phase(f.Phase).Failures++
	}
	return j.report
}

type judge struct {
	h      *History
	o      Options
	report *Report
	lines  map[uint64]*line   // key -> its commits
	groups map[uint64][]*line // group -> keys that ever belonged to it
	lost   map[Entry]bool
	// shown is the place of the commit that each read shows: absence, or what is wrong with it, is below 0.
	shown []int
}

// What a read shows if not a commit.
const (
	showsAbsence = -1 - iota
	showsLost
	showsPhantom
)

func (j *judge) line(key uint64) *line {
	l := j.lines[key]
	if l == nil {
		l = newLine(key)
		j.lines[key] = l
	}
	return l
}

func (j *judge) readCommits() {
	type member struct{ key, group uint64 }
	members := map[member]bool{}
	for _, c := range j.h.Commits {
		l := j.line(c.Key)
		l.add(c)
		if m := (member{c.Key, c.Group}); c.Group != 0 && !c.Absent && !members[m] {
			members[m] = true
			j.groups[c.Group] = append(j.groups[c.Group], l)
		}
	}
	j.lost = make(map[Entry]bool, len(j.h.Lost))
	for _, c := range j.h.Lost {
		j.lost[Entry{c.Key, c.Op}] = true
	}
	for i := range j.h.Reads {
		j.line(j.h.Reads[i].Key)
	}
	for _, l := range j.lines {
		l.close()
	}
}

// resolve finds the commit that each answer shows, and what answers prove to have happened.
func (j *judge) resolve() {
	j.shown = make([]int, len(j.h.Reads))
	for i := range j.h.Reads {
		r := &j.h.Reads[i]
		j.shown[i] = j.find(r.Key, r.Op, r.Returned)
	}
	for i := range j.h.Lists {
		for _, e := range j.h.Lists[i].Entries {
			j.find(e.Key, e.Op, j.h.Lists[i].Returned)
		}
	}
}

func (j *judge) find(key, op uint64, returned time.Duration) int {
	if op == 0 {
		return showsAbsence
	}
	l := j.lines[key]
	if l != nil {
		if place, ok := l.place[op]; ok {
			if !l.possible(place, returned) {
				return showsPhantom
			}
			l.saw(place, returned)
			return place
		}
	}
	if j.lost[Entry{key, op}] {
		return showsLost
	}
	return showsPhantom
}

// read judges I1 and I4 of one answer.
func (j *judge) read(r *Read, shown int) {
	j.report.count(r)
	l := j.lines[r.Key]
	low := l.low(r.Invoked - r.Budget)
	place := shown
	switch shown {
	case showsPhantom:
		j.report.violate(I4, r, fmt.Sprintf("op %d had not been sent when the answer was there, or was never committed%s", r.Op, l.around(low, low)))
		return
	case showsLost:
		if r.Fresh && r.Invoked >= j.o.LostUntil+r.Budget {
			j.report.violate(I1, r, fmt.Sprintf("op %d was lost in the failover that ended at %v%s", r.Op, j.o.LostUntil, l.around(low, low)))
		}
		return
	case showsAbsence:
		if place = l.absent(low, r.Returned); place < 0 {
			last := l.lastAbsent(r.Returned) // 0 at least: nothing was there before the first
			if r.Fresh {
				j.late(r, l, last, low)
			}
			return
		}
	}
	if !r.Fresh {
		return
	}
	if place < low {
		j.late(r, l, place, low)
		return
	}
	j.report.stale(r, l.behind(place, r.Invoked))
}

func (j *judge) late(r *Read, l *line, place, low int) {
	j.report.stale(r, l.behind(place, r.Invoked))
	j.report.violate(I1, r, fmt.Sprintf("it shows #%d, and #%d was known to have happened more than the budget of %v before it was asked for%s",
		place, low, r.Budget, l.around(place, low)))
}

// list judges I1 and I4 of one list.
func (j *judge) list(r *List) {
	as := r.asRead(0, 0)
	j.report.countList(r)
	in := make(map[uint64]bool, len(r.Entries))
	var behind time.Duration
	for _, e := range r.Entries {
		in[e.Key] = true
		as.Key, as.Op = e.Key, e.Op
		l := j.lines[e.Key]
		place := j.find(e.Key, e.Op, r.Returned)
		if place == showsLost {
			if r.Fresh && r.Invoked >= j.o.LostUntil+r.Budget {
				j.report.violate(I1, &as, fmt.Sprintf("the list of group %d shows a commit that was lost in a failover", r.Group))
			}
			continue
		}
		if place < 0 {
			j.report.violate(I4, &as, fmt.Sprintf("the list of group %d shows op %d, which had not been sent or was never committed", r.Group, e.Op))
			continue
		}
		if l.commits[place].Group != r.Group || l.commits[place].Absent {
			j.report.violate(I4, &as, fmt.Sprintf("the list of group %d shows op %d, which put its key into group %d", r.Group, e.Op, l.commits[place].Group))
			continue
		}
		if !r.Fresh {
			continue
		}
		if low := l.low(r.Invoked - r.Budget); place < low {
			j.report.violate(I1, &as, fmt.Sprintf("the list of group %d shows #%d of the key, and #%d was known more than the budget of %v before it was asked for%s",
				r.Group, place, low, r.Budget, l.around(place, low)))
		}
		behind = max(behind, l.behind(place, r.Invoked))
	}
	if !r.Fresh {
		return
	}
	for _, l := range j.groups[r.Group] {
		if in[l.key] {
			continue
		}
		low := l.low(r.Invoked - r.Budget)
		if l.outside(r.Group, low, r.Returned) >= 0 {
			continue
		}
		as.Key, as.Op = l.key, 0
		j.report.violate(I1, &as, fmt.Sprintf("the list of group %d lacks the key, which #%d, known more than the budget of %v before it was asked for, put there%s",
			r.Group, low, r.Budget, l.around(low, low)))
	}
	j.report.staleList(r, behind)
}

// asRead is the list's answer about one key.
func (r *List) asRead(key, op uint64) Read {
	return Read{
		Key: key, Op: op, Fresh: r.Fresh, Tier: r.Tier, Phase: r.Phase, Replica: r.Replica, Session: r.Session,
		Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned,
	}
}

// A showing is one answer about one key, or a write, as I2 and I3 look at it.
type showing struct {
	who, what          uint64        // it is compared with others of the same
	invoked, returned  time.Duration // of a write, when it was acknowledged, both
	least, most        int           // places that it may show; most < 0: it only is a bound for others
	read               *Read
	list               *List
	line               *line
	entry              Entry
	onlyBound, inGroup bool
}

// replicas judges I3.
func (j *judge) replicas() {
	var all []showing
	for i := range j.h.Reads {
		if r := &j.h.Reads[i]; r.Fresh {
			if s, ok := j.showing(r, j.shown[i]); ok {
				s.who, s.what = uint64(r.Replica), r.Key
				all = append(all, s)
			}
		}
	}
	j.monotonic(I3, all, func(s *showing, before int) string {
		return fmt.Sprintf("replica %d shows at most #%d, and had answered #%d before it was asked%s", s.who, s.most, before, s.line.around(s.most, before))
	})
	// The lists of a replica are other entries than the keys themselves.
	all = all[:0]
	for i := range j.h.Lists {
		r := &j.h.Lists[i]
		if !r.Fresh {
			continue
		}
		for _, e := range r.Entries {
			if place := j.find(e.Key, e.Op, r.Returned); place >= 0 {
				all = append(all, showing{
					who: uint64(r.Replica)<<32 | r.Group, what: e.Key, invoked: r.Invoked, returned: r.Returned,
					least: place, most: place, list: r, line: j.lines[e.Key], entry: e,
				})
			}
		}
	}
	j.monotonic(I3, all, func(s *showing, before int) string {
		return fmt.Sprintf("the list shows #%d, and the replica's list had #%d before it was asked%s", s.most, before, s.line.around(s.most, before))
	})
}

// showing is what an answer shows at least and at most; it reports false for one that shows nothing to compare.
func (j *judge) showing(r *Read, shown int) (showing, bool) {
	l := j.lines[r.Key]
	s := showing{invoked: r.Invoked, returned: r.Returned, least: shown, most: shown, read: r, line: l}
	if shown == showsAbsence {
		low := 0
		if r.Fresh {
			low = l.low(r.Invoked - r.Budget)
		}
		s.least, s.most = l.absent(low, r.Returned), l.lastAbsent(r.Returned)
		if s.least < 0 {
			return s, false // a violation of I1 already
		}
	}
	return s, shown >= showsAbsence
}

// sessions judges I2.
func (j *judge) sessions() {
	var all []showing
	for _, l := range j.lines {
		for place, c := range l.commits {
			if c.Session != 0 && c.Acked != Never {
				all = append(all, showing{who: c.Session, what: c.Key, invoked: c.Acked, returned: c.Acked, least: place, onlyBound: true, line: l})
			}
		}
	}
	for i := range j.h.Reads {
		if r := &j.h.Reads[i]; r.Session != 0 {
			if s, ok := j.showing(r, j.shown[i]); ok {
				s.who, s.what = r.Session, r.Key
				all = append(all, s)
			}
		}
	}
	for i := range j.h.Lists {
		r := &j.h.Lists[i]
		if r.Session == 0 {
			continue
		}
		in := make(map[uint64]bool, len(r.Entries))
		for _, e := range r.Entries {
			in[e.Key] = true
			if place := j.find(e.Key, e.Op, r.Returned); place >= 0 {
				all = append(all, showing{
					who: r.Session, what: e.Key, invoked: r.Invoked, returned: r.Returned,
					least: place, most: place, list: r, line: j.lines[e.Key], entry: e,
				})
			}
		}
		for _, l := range j.groups[r.Group] {
			if !in[l.key] {
				all = append(all, showing{
					who: r.Session, what: l.key, invoked: r.Invoked, returned: r.Returned, inGroup: true,
					list: r, line: l, entry: Entry{Key: l.key},
				})
			}
		}
	}
	j.monotonic(I2, all, func(s *showing, before int) string {
		return fmt.Sprintf("session %d is shown at most #%d, and had written or been shown #%d%s", s.who, s.most, before, s.line.around(s.most, before))
	})
}

// monotonic reports every showing that is behind another of the same who and what that was over when it began.
func (j *judge) monotonic(i Invariant, all []showing, explain func(s *showing, before int) string) {
	slices.SortFunc(all, func(a, b showing) int {
		return cmp.Or(cmp.Compare(a.who, b.who), cmp.Compare(a.what, b.what), cmp.Compare(a.invoked, b.invoked))
	})
	var ends []*showing // of one who and what, by their end
	for from := 0; from < len(all); {
		to := from + 1
		for to < len(all) && all[to].who == all[from].who && all[to].what == all[from].what {
			to++
		}
		ends = ends[:0]
		for k := from; k < to; k++ {
			if !all[k].inGroup {
				ends = append(ends, &all[k])
			}
		}
		slices.SortFunc(ends, func(a, b *showing) int { return cmp.Compare(a.returned, b.returned) })
		highest, next := 0, 0
		for k := from; k < to; k++ {
			s := &all[k]
			for next < len(ends) && ends[next].returned < s.invoked {
				highest = max(highest, ends[next].least)
				next++
			}
			if s.onlyBound {
				continue
			}
			if s.inGroup {
				if s.list.Group == 0 || s.line.outside(s.list.Group, highest, s.returned) >= 0 {
					continue
				}
				s.most = s.line.outside(s.list.Group, 0, s.returned)
			} else if s.most >= highest {
				continue
			}
			r := s.read
			if r == nil {
				as := s.list.asRead(s.entry.Key, s.entry.Op)
				r = &as
			}
			j.report.violate(i, r, explain(s, highest))
		}
		from = to
	}
}

// sweep judges I5.
func (j *judge) sweep() {
	last := func(key uint64) *Commit {
		if l := j.lines[key]; l != nil {
			return &l.commits[len(l.commits)-1]
		}
		return &Commit{Key: key, Absent: true}
	}
	shows := func(c *Commit) uint64 {
		if c.Absent {
			return 0
		}
		return c.Op
	}
	for i := range j.h.Sweep {
		r := &j.h.Sweep[i]
		j.report.Swept++
		if want := shows(last(r.Key)); r.Op != want {
			j.report.violate(I5, r, fmt.Sprintf("after the end it shows op %d, and the last is %d (0 = absent)", r.Op, want))
		}
	}
	for i := range j.h.SweepLists {
		r := &j.h.SweepLists[i]
		j.report.Swept++
		in := make(map[uint64]bool, len(r.Entries))
		for _, e := range r.Entries {
			in[e.Key] = true
			if c := last(e.Key); c.Absent || c.Op != e.Op || c.Group != r.Group {
				as := r.asRead(e.Key, e.Op)
				j.report.violate(I5, &as, fmt.Sprintf("after the end the list of group %d shows op %d, and the last is op %d in group %d (absent: %v)", r.Group, e.Op, c.Op, c.Group, c.Absent))
			}
		}
		for _, l := range j.groups[r.Group] {
			if c := last(l.key); !in[l.key] && !c.Absent && c.Group == r.Group {
				as := r.asRead(l.key, 0)
				j.report.violate(I5, &as, fmt.Sprintf("after the end the list of group %d lacks the key", r.Group))
			}
		}
	}
}
