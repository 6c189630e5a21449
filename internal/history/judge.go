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
	// Lossy says that a failover may have lost commits, so that answers may show the writes in History.Lost and
	// History.Unsettled; without it that is I4, as with any write that is not among the commits.
	Lossy bool
	// LostUntil is when the server that had them was replaced: they may be shown FRESH by answers that were asked for until
	// then and the budget, and STALE at any time.
	LostUntil time.Duration
}

// Judge gives the verdict on a history. It takes time in the order of n log n, and does not change the history.
// Verdicts on one key come before those on the next higher key; I8 and I5 come last.
func Judge(h *History, o Options) *Report {
	j := &judge{h: h, o: o, report: newReport(h, cmp.Or(o.Keep, 10)), lines: map[uint64]*line{}}
	j.commits()
	j.answers()
	for i, l := range j.ordered {
		j.gather(uint32(i), l)
		j.line(l)
	}
	for i := range j.heads {
		if r := &j.heads[i]; r.Fresh {
			j.report.stale(r, j.behind[i])
		}
	}
	j.joints()
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

	lines   map[uint64]*line // key -> its commits
	ordered []*line          // by key
	lost    []Commit         // of unknown keys
	heads   []Read           // what each list says of itself
	behind  []time.Duration  // list -> the longest that it lacked a commit

	reads   buckets          // line -> indices of Reads
	entries buckets          // line -> indices of refs
	refs    []ref            // entries of lists, by list
	lists   map[uint64][]int // group -> its lists
	now     []answer         // on the line being judged
}

// ref is an entry of a list.
type ref struct {
	list int
	op   uint64
}

// buckets are indices, ascending, by line.
type buckets struct {
	from []uint32 // line -> where it begins in all; one more for the end
	all  []uint32
}

func newBuckets(lines int, of []uint32) buckets {
	b := buckets{from: make([]uint32, lines+1), all: make([]uint32, len(of))}
	for _, l := range of {
		b.from[l+1]++
	}
	for i := range lines {
		b.from[i+1] += b.from[i]
	}
	at := slices.Clone(b.from)
	for i, l := range of {
		b.all[at[l]] = uint32(i)
		at[l]++
	}
	return b
}

func (b buckets) of(line uint32) []uint32 { return b.all[b.from[line]:b.from[line+1]] }

func (j *judge) need(key uint64) *line {
	l := j.lines[key]
	if l == nil {
		l = newLine(key)
		j.lines[key] = l
	}
	return l
}

// commits makes the lines, also of keys that are only asked for.
func (j *judge) commits() {
	for _, c := range j.h.Commits {
		j.need(c.Key).add(c)
	}
	var lost []Commit
	if j.o.Lossy {
		lost = slices.Concat(j.h.Lost, j.h.Unsettled)
	}
	for _, c := range lost {
		if c.Key == 0 {
			j.lost = append(j.lost, c)
			continue
		}
		l := j.need(c.Key)
		l.lost = append(l.lost, c)
	}
	for i := range j.h.Reads {
		j.need(j.h.Reads[i].Key)
	}
	for i := range j.h.Lists {
		for _, e := range j.h.Lists[i].Entries {
			j.need(e.Key)
		}
	}
	for i := range j.h.Joints {
		for _, e := range j.h.Joints[i].Entries {
			j.need(e.Key)
		}
	}
	for _, l := range j.lines {
		j.ordered = append(j.ordered, l)
		j.report.Disordered += l.close()
	}
	slices.SortFunc(j.ordered, func(a, b *line) int { return cmp.Compare(a.key, b.key) })
}

// answers puts them into buckets.
func (j *judge) answers() {
	number := make(map[uint64]uint32, len(j.ordered))
	for i, l := range j.ordered {
		number[l.key] = uint32(i)
	}
	of := make([]uint32, len(j.h.Reads))
	for i := range j.h.Reads {
		of[i] = number[j.h.Reads[i].Key]
		j.report.count(&j.h.Reads[i])
	}
	j.reads = newBuckets(len(j.ordered), of)

	var keys []uint32
	j.lists = map[uint64][]int{}
	j.heads = make([]Read, len(j.h.Lists))
	j.behind = make([]time.Duration, len(j.h.Lists))
	for i := range j.h.Lists {
		r := &j.h.Lists[i]
		j.heads[i] = r.asRead(0, 0)
		j.report.count(&j.heads[i])
		j.lists[r.Group] = append(j.lists[r.Group], i)
		for _, e := range r.Entries {
			keys = append(keys, number[e.Key])
			j.refs = append(j.refs, ref{i, e.Op})
		}
	}
	j.entries = newBuckets(len(j.ordered), keys)
}

// asRead is the list's answer about one key.
func (r *List) asRead(key, op uint64) Read {
	return Read{
		Key: key, Op: op, Fresh: r.Fresh, Tier: r.Tier, Phase: r.Phase, Replica: r.Replica, Session: r.Session,
		Budget: r.Budget, Invoked: r.Invoked, Returned: r.Returned,
	}
}

// answer is what was answered about the key of a line.
type answer struct {
	claim

	invoked, returned time.Duration
	read              *Read // itself, or the head of the list
	list              int   // -1 = none
	place             int   // the least that it can be of; -1 = none, or it bounds nothing
}

// gather collects the answers about the key of a line.
func (j *judge) gather(number uint32, l *line) {
	j.now = j.now[:0]
	for _, i := range j.reads.of(number) {
		r := &j.h.Reads[i]
		j.now = append(j.now, answer{claim: claim{op: r.Op}, invoked: r.Invoked, returned: r.Returned, read: r, list: -1})
	}
	in := j.entries.of(number)
	for _, i := range in {
		e := j.refs[i]
		j.add(claim{e.op, j.h.Lists[e.list].Group}, e.list)
	}
	// Lists that do not have the key say so.
	groups := map[uint64]bool{}
	for i := range l.commits {
		g := l.commits[i].Group
		if g == 0 || groups[g] {
			continue
		}
		groups[g] = true
		k := 0
		for _, list := range j.lists[g] {
			for k < len(in) && j.refs[in[k]].list < list {
				k++
			}
			if k == len(in) || j.refs[in[k]].list > list {
				j.add(claim{0, g}, list)
			}
		}
	}
}

func (j *judge) add(c claim, list int) {
	r := &j.heads[list]
	j.now = append(j.now, answer{claim: c, invoked: r.Invoked, returned: r.Returned, read: r, list: list})
}

// shown is a place that somebody had seen by an instant.
type shown struct {
	by    time.Duration
	place int
}

// memory is one that must not be answered from before what it was answered: a replica about a key or within a list.
type memory struct {
	replica uint32
	group   uint64
}

// line judges I1 to I4 of all answers about one key. It goes through them as they were asked for and gives each the
// least place that all promises leave it; see the package comment for why that is exact.
func (j *judge) line(l *line) {
	slices.SortFunc(j.now, func(a, b answer) int { return cmp.Compare(a.invoked, b.invoked) })
	ends := make([]*answer, len(j.now))
	for i := range j.now {
		ends[i] = &j.now[i]
	}
	slices.SortFunc(ends, func(a, b *answer) int { return cmp.Compare(a.returned, b.returned) })
	writes := []int{} // places that sessions wrote, as they were told
	for i, c := range l.commits {
		if c.Session != 0 && c.Acked != Never {
			writes = append(writes, i)
		}
	}
	slices.SortFunc(writes, func(a, b int) int { return cmp.Compare(l.commits[a].Acked, l.commits[b].Acked) })

	var seen []shown // both ascend
	replicas, sessions := map[memory]int{}, map[uint64]int{}
	for i := range j.now {
		a := &j.now[i]
		for ; len(ends) > 0 && ends[0].returned < a.invoked; ends = ends[1:] {
			e := ends[0]
			if e.place < 0 {
				continue
			}
			if len(seen) == 0 || seen[len(seen)-1].place < e.place {
				seen = append(seen, shown{e.returned, e.place})
			}
			if e.read.Fresh {
				m := e.memory()
				replicas[m] = max(replicas[m], e.place)
			}
			if s := e.read.Session; s != 0 {
				sessions[s] = max(sessions[s], e.place)
			}
		}
		for ; len(writes) > 0 && l.commits[writes[0]].Acked < a.invoked; writes = writes[1:] {
			s := l.commits[writes[0]].Session
			sessions[s] = max(sessions[s], writes[0])
		}
		j.answer(l, a, seen, replicas, sessions)
	}
}

func (a *answer) memory() memory {
	if a.list < 0 {
		return memory{replica: a.read.Replica}
	}
	return memory{a.read.Replica, a.group}
}

// answer judges one answer, and places it.
func (j *judge) answer(l *line, a *answer, seen []shown, replicas map[memory]int, sessions map[uint64]int) {
	a.place = -1
	r := a.read
	switch j.ofLost(l, a) {
	case lostNot:
	case lostInTime:
		j.report.Excused++
		return
	case lostLate:
		j.violate(I1, a, l, fmt.Sprintf("it was lost in the failover that ended at %v", j.o.LostUntil))
		return
	}
	high := l.high(a.returned)
	if l.next(a.claim, 0) > high {
		j.violate(I4, a, l, "no such state can have been when the answer was there"+l.around(high, high))
		return
	}
	bound, broken := 0, false
	must := func(from int, i Invariant, why string) bool {
		if bound = max(bound, from); l.next(a.claim, from) <= high {
			return true
		}
		broken = true
		at := l.last(a.claim, high)
		j.violate(i, a, l, fmt.Sprintf("it shows #%d at most, and #%d %s%s", at, from, why, l.around(at, from)))
		return false
	}
	if r.Fresh {
		since := a.invoked - r.Budget
		if must(l.low(since), I1, "had been acknowledged before the read was sent, less its budget") {
			must(place(seen, since), I1, "had been answered to a reader before the read was sent, less its budget")
		}
		must(replicas[a.memory()], I3, "had been answered, FRESH, by the same replica before the read was sent")
		late := l.behind(l.last(a.claim, high), a.invoked)
		if a.list < 0 {
			j.report.stale(r, late)
		} else {
			j.behind[a.list] = max(j.behind[a.list], late)
		}
	}
	if r.Session != 0 {
		must(sessions[r.Session], I2, "had been written or answered in the same session before the read was sent")
	}
	if broken {
		bound = 0 // what it shows it shows, but no more than it must
	}
	a.place = l.next(a.claim, bound)
}

// place is the last that had been seen before the instant; 0 = none.
func place(seen []shown, before time.Duration) int {
	if n := len(seen); n > 0 && seen[n-1].by < before {
		return seen[n-1].place // usually
	}
	i, _ := slices.BinarySearchFunc(seen, before, func(s shown, t time.Duration) int { return cmp.Compare(s.by, t) })
	if i == 0 {
		return 0
	}
	return seen[i-1].place
}

// What an answer may show of commits that a failover lost.
type lostness uint8

const (
	lostNot    lostness = iota // nothing
	lostInTime                 // it shows one, or may; not much is known then
	lostLate                   // it shows one, FRESH, although it cannot be from before the failover
)

func (j *judge) ofLost(l *line, a *answer) lostness {
	if len(l.lost)+len(j.lost) == 0 {
		return lostNot
	}
	late := a.read.Fresh && a.invoked-a.read.Budget > j.o.LostUntil
	verdict := lostNot
	for _, all := range [...][]Commit{l.lost, j.lost} {
		for i := range all {
			switch c := &all[i]; {
			case c.Sent > a.returned || (a.op != 0 && a.op != c.Op):
			case !late:
				return lostInTime
			case a.op != 0:
				verdict = lostLate
			}
		}
	}
	return verdict
}

func (j *judge) violate(i Invariant, a *answer, l *line, why string) {
	r := *a.read
	r.Key, r.Op = l.key, a.op
	switch {
	case a.list < 0:
	case a.op != 0:
		why = fmt.Sprintf("in the list of group %d: %s", a.group, why)
	default:
		why = fmt.Sprintf("missing in the list of group %d: %s", a.group, why)
	}
	j.report.violate(i, &r, why)
}

// sweep judges I5.
func (j *judge) sweep() {
	last := func(key uint64) *Commit {
		if l := j.lines[key]; l != nil {
			return &l.commits[len(l.commits)-1]
		}
		return &Commit{Key: key, Absent: true}
	}
	for i := range j.h.Sweep {
		r := &j.h.Sweep[i]
		j.report.Swept++
		if c := last(r.Key); c.Absent != (r.Op == 0) || !c.Absent && c.Op != r.Op {
			j.report.violate(I5, r, "after the end, when the last commit is "+c.state())
		}
	}
	if len(j.h.SweepLists) == 0 {
		return
	}
	members := map[uint64][]uint64{} // group -> keys
	for _, l := range j.ordered {
		if c := last(l.key); c.Group != 0 {
			members[c.Group] = append(members[c.Group], l.key)
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
				j.report.violate(I5, &as, fmt.Sprintf("in the list of group %d after the end, when the last commit is %s", r.Group, c.state()))
			}
		}
		for _, key := range members[r.Group] {
			if !in[key] {
				as := r.asRead(key, 0)
				j.report.violate(I5, &as, fmt.Sprintf("missing in the list of group %d after the end, when the last commit is %s", r.Group, last(key).state()))
			}
		}
	}
}

func (c *Commit) state() string {
	if c.Absent {
		return fmt.Sprintf("op %d (deleted)", c.Op)
	}
	return fmt.Sprintf("op %d in group %d", c.Op, c.Group)
}
