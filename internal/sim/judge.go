package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/freshet-cache/freshet/internal/history"
)

// A register is something whose value changes with commits: a row, a row's detail, or a list. Its
// value is the number of the write that made it, 0 when there is nothing; that of a list is a hash of
// its elements.
type register struct {
	kind registerKind
	n    int // row or group
}

type registerKind uint8

const (
	rowRegister registerKind = iota
	detailRegister
	listRegister
)

// String is the register's name in explanations.
func (r register) String() string {
	return [...]string{"row", "detail", "list"}[r.kind] + fmt.Sprint(" ", r.n)
}

// segment is a span of a register's history: from its time up to that of the next it had the value.
type segment struct {
	from  time.Duration
	value uint64
}

// answer is one answered read of one register.
type answer struct {
	register          register
	value             uint64
	fresh             bool
	age, budget       time.Duration
	invoked, returned time.Duration
	boot              uint64
	session           int
	tier              uint8
	sweep             bool
	graced            bool // given in its grace, which the writer allows also where it has written
}

// learned says that from a time on a reader must not be answered from before a segment: it has been
// told that its write was committed.
type learned struct {
	register register
	segment  int
	at       time.Duration
	boot     uint64 // who may not go back: the replica, and
	session  int    // the session, if not 0
}

// record is the history as it is judged: what Postgres held when, and what readers were told.
type record struct {
	segments map[register][]segment
	answers  []answer
	learned  []learned
	// commits are those of rows and details for the judge of package history.
	commits []history.Commit
}

// set notes the register's value from the time on and returns its segment.
func (h *record) set(r register, at time.Duration, value uint64) int {
	s := h.segments[r]
	if len(s) == 0 || s[len(s)-1].value != value {
		s = append(s, segment{at, value})
		h.segments[r] = s
	}
	return len(s) - 1
}

// Violation is one broken promise.
type Violation struct {
	Invariant string // "I1" to "I5"
	Text      string
}

// judge lists the broken promises.
func (h *record) judge() []Violation {
	var found []Violation
	for i := range h.answers {
		if v := h.bounded(&h.answers[i]); v != nil {
			found = append(found, *v)
		}
	}
	return append(found, h.ordered()...)
}

// end is when the segment ends; forever for the last.
func end(s []segment, i int) time.Duration {
	if i+1 < len(s) {
		return s[i+1].from
	}
	return 1 << 62
}

// fits reports whether the answer may be the state of the segment, going by the clock alone.
func (a *answer) fits(s []segment, i int) bool {
	if s[i].value != a.value || s[i].from >= a.returned {
		return false
	}
	if a.fresh && end(s, i) < a.invoked-a.budget {
		return false
	}
	return end(s, i) >= a.returned-a.age
}

// bounded checks one answer against the clock: I1, I4, I5.
func (h *record) bounded(a *answer) *Violation {
	s := h.segments[a.register]
	known, begun := false, false
	for i := range s {
		if a.fits(s, i) {
			return nil
		}
		known = known || s[i].value == a.value
		begun = begun || (s[i].value == a.value && s[i].from < a.returned)
	}
	v := &Violation{Invariant: "I1", Text: "older than it may be: " + h.explain(a)}
	switch {
	case a.sweep:
		v.Invariant = "I5"
	case !known:
		v.Invariant, v.Text = "I4", "never committed: "+h.explain(a)
	case !begun:
		v.Invariant, v.Text = "I4", "answered before its commit: "+h.explain(a)
	}
	return v
}

func (h *record) explain(a *answer) string {
	label := "STALE"
	if a.fresh {
		label = "FRESH"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v = %d, %s, budget %v, age %v, tier %d, by %d, session %d, from %v to %v; the register had",
		a.register, a.value, label, a.budget, a.age, a.tier, a.boot, a.session, a.invoked, a.returned)
	for _, s := range h.segments[a.register] {
		fmt.Fprintf(&b, " %d from %v", s.value, s.from)
	}
	return b.String()
}

// line is the answers of one reader about one register, which must not go back.
type line struct {
	register register
	boot     uint64 // of a replica's FRESH answers, or of those after its own writes
	session  int    // of a session's answers
	own      bool
}

// ordered checks I2 and I3: each reader's answers can be put on segments that never go back.
func (h *record) ordered() []Violation {
	lines := map[line][]*answer{}
	for i := range h.answers {
		a := &h.answers[i]
		if a.fresh {
			l := line{register: a.register, boot: a.boot}
			lines[l] = append(lines[l], a)
		}
		if a.session != 0 {
			l := line{register: a.register, session: a.session}
			lines[l] = append(lines[l], a)
		}
		if !a.graced {
			l := line{register: a.register, boot: a.boot, own: true}
			lines[l] = append(lines[l], a)
		}
	}
	wrote := map[line][]learned{}
	for _, w := range h.learned {
		l := line{register: w.register, boot: w.boot, own: true}
		wrote[l] = append(wrote[l], w)
		if w.session != 0 {
			l = line{register: w.register, session: w.session}
			wrote[l] = append(wrote[l], w)
		}
	}
	var found []Violation
	for l, answers := range lines {
		if l.own && len(wrote[l]) == 0 {
			continue
		}
		if v := h.forward(l, answers, wrote[l]); v != nil {
			found = append(found, *v)
		}
	}
	slices.SortFunc(found, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Invariant, b.Invariant), cmp.Compare(a.Text, b.Text))
	})
	return found
}

// forward gives each answer of a line the first segment that it can be of and that is not before those
// of the answers that had returned when it was asked for.
func (h *record) forward(l line, answers []*answer, wrote []learned) *Violation {
	slices.SortStableFunc(answers, func(a, b *answer) int { return cmp.Compare(a.invoked, b.invoked) })
	s := h.segments[l.register]
	places := make([]int, len(answers))
	for i, a := range answers {
		least := 0
		var after *answer
		if !l.own {
			for j, before := range answers[:i] {
				if before.returned < a.invoked && places[j] > least {
					least, after = places[j], before
				}
			}
		}
		for _, w := range wrote {
			if w.at < a.invoked && w.segment > least {
				least, after = w.segment, nil
			}
		}
		place := -1
		for j := range s {
			if j >= least && a.fits(s, j) {
				place = j
				break
			}
		}
		if place < 0 {
			for j := range s {
				if a.fits(s, j) { // else bounded has told
					invariant := "I3"
					if l.session != 0 || l.own {
						invariant = "I2"
					}
					why := fmt.Sprintf("after its own write of %d", s[least].value)
					if after != nil {
						why = "after the answer " + h.explain(after)
					}
					return &Violation{Invariant: invariant, Text: "goes back: " + h.explain(a) + ", " + why}
				}
			}
			place = 0
		}
		places[i] = place
	}
	return nil
}

// other asks the judge of package history, who judges real processes, about the answers of single keys.
// He knows commits by their numbers, so histories in which one comes twice are not for him: those of
// rows that change their key, and of failovers that take commits back.
func (h *record) other() []Violation {
	all := history.History{Commits: h.commits}
	for i := range h.answers {
		a := &h.answers[i]
		if a.register.kind == listRegister {
			continue
		}
		read := history.Read{
			Key: a.register.key(), Op: a.value, Fresh: a.fresh, Tier: a.tier, Replica: uint32(a.boot), Session: uint64(a.session),
			Budget: a.budget, Invoked: a.invoked, Returned: a.returned,
		}
		if a.sweep {
			all.Sweep = append(all.Sweep, read)
		} else {
			all.Reads = append(all.Reads, read)
		}
	}
	var found []Violation
	for _, v := range history.Judge(&all, history.Options{}).Kept {
		found = append(found, Violation{v.Invariant.String(), "package history: " + v.String()})
	}
	return found
}

// key is the row's key in the table.
func (r register) key() uint64 {
	if r.kind == detailRegister {
		return uint64(details + r.n)
	}
	return uint64(r.n)
}
