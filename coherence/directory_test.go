package coherence_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
)

var histories = flag.Int("histories", 200, "how many random histories each test of the directory goes through")

// world drives a directory and its dumb twin, which remembers every change for ever, through one
// random history of a log.
type world struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand
	dir    *coherence.Directory
	log    *logtest.Memory
	scopes []coherence.Scope
	exact  bool // there is room, and few changes between polls: the directory must be as good as its twin

	long      *logtest.Tx // open for the whole history; exact worlds have one
	open      []*logtest.Tx
	changed   map[*logtest.Tx][]int                      // transaction -> its scopes
	committed []change                                   // in the order of commits
	told      map[coherence.ScopeHash]map[uint64]bool    // the twin: scope -> changes that the node was told of
	snapshots []coherence.Snapshot                       // values' snapshots, some old, most new
	served    map[coherence.ScopeHash]coherence.Snapshot // value -> newest snapshot it was served under
	flight    *flight                                    // the poll on its way; nil = none
	floor     coherence.Snapshot                         // what the twin was reset to
	checks    int
	valid     int
	graced    int // changes that values lacked in their grace
	explained map[coherence.Refusal]int

	now    coherence.Instant            // goes on by one for each step
	graces map[change]time.Duration     // of changes that have one
	early  map[change]bool              // of which the directory heard before their commit
	commit map[uint64]coherence.Instant // transaction -> when it was committed
}

type change struct {
	xid   uint64
	scope int
}

type flight struct {
	mark   uint64
	sent   coherence.Instant
	result coherence.PollResult
}

func newWorld(t *testing.T, seed uint64, room, scopes int, exact bool) *world {
	t.Helper()
	w := &world{
		t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 7)), dir: coherence.NewDirectory(room), log: logtest.NewMemory(), exact: exact,
		changed: map[*logtest.Tx][]int{}, told: map[coherence.ScopeHash]map[uint64]bool{}, served: map[coherence.ScopeHash]coherence.Snapshot{},
		graces: map[change]time.Duration{}, commit: map[uint64]coherence.Instant{}, explained: map[coherence.Refusal]int{},
		early: map[change]bool{},
	}
	for i := range scopes {
		s := coherence.Entity("n", fmt.Sprint(i))
		w.scopes = append(w.scopes, s)
		w.told[s.Hash()] = map[uint64]bool{}
	}
	return w
}

func (w *world) run(steps int) {
	w.snapshots = append(w.snapshots, w.log.Snapshot())
	if w.exact {
		w.long = w.log.Begin()
		w.long.Change(w.scopes[0])
	}
	for range 20 { // what is in the log when the node starts
		w.write()
	}
	w.floor = w.log.Snapshot()
	w.dir.Reset(w.floor)
	w.snapshots = append(w.snapshots, w.floor)
	for range steps {
		w.now++
		w.dir.At(w.now)
		switch n := w.random.IntN(20); {
		case n < 8:
			w.write()
		case n < 11:
			w.hint()
			for !w.exact && w.random.IntN(4) > 0 {
				w.write()
				w.hint()
			}
		case n < 13:
			w.snapshots = append(w.snapshots, w.log.Snapshot())
			if len(w.snapshots) > 24 {
				i := w.random.IntN(len(w.snapshots))
				w.snapshots = slices.Delete(w.snapshots, i, i+1)
			}
		case n < 16:
			if w.flight == nil {
				w.send()
			} else {
				w.land()
			}
		case n < 18:
			w.snapshots = append(w.snapshots, w.log.Snapshot())
			for range 6 {
				w.serve()
			}
		default:
			w.check()
		}
		if w.t.Failed() {
			return
		}
	}
	if w.long != nil {
		w.long.Commit()
		w.committed = append(w.committed, change{w.long.XID(), 0})
	}
	for range 2 {
		if w.flight == nil {
			w.send()
		}
		w.land()
		w.check()
	}
}

// write begins, changes or ends a transaction.
func (w *world) write() {
	switch n := w.random.IntN(4); {
	case n == 0 && len(w.open) < 8:
		w.open = append(w.open, w.log.Begin())
	case n < 3 && len(w.open) > 0:
		tx, scope := w.open[w.random.IntN(len(w.open))], w.random.IntN(len(w.scopes))
		if w.random.IntN(2) == 0 {
			scope = 0 // hot
		}
		if slices.Contains(w.changed[tx], scope) || (w.exact && w.unpolled(scope) >= 3) {
			return
		}
		tx.Grace(0)
		if !w.exact && w.random.IntN(3) == 0 {
			grace := time.Duration(1 + w.random.IntN(60))
			tx.Grace(grace)
			w.graces[change{tx.XID(), scope}] = grace
		}
		tx.Change(w.scopes[scope])
		w.changed[tx] = append(w.changed[tx], scope)
	case len(w.open) > 0:
		i := w.random.IntN(len(w.open))
		tx := w.open[i]
		w.open = slices.Delete(w.open, i, i+1)
		if w.random.IntN(5) == 0 {
			tx.Rollback()
			delete(w.changed, tx)
			return
		}
		tx.Commit()
		w.commit[tx.XID()] = w.now
		for _, scope := range w.changed[tx] {
			w.committed = append(w.committed, change{tx.XID(), scope})
		}
		delete(w.changed, tx)
	}
}

// unpolled counts the scope's changes that the latest poll does not see, also those to come.
func (w *world) unpolled(scope int) (n int) {
	latest := w.dir.Latest()
	for _, c := range w.committed {
		if c.scope == scope && (latest == nil || !latest.Sees(c.xid)) {
			n++
		}
	}
	for _, scopes := range w.changed {
		if slices.Contains(scopes, scope) {
			n++
		}
	}
	return n
}

// hint tells the directory of a commit: late, twice, out of order, or of one whose outcome is not known.
func (w *world) hint() {
	if w.dir.Latest() == nil {
		return
	}
	if !w.exact && len(w.open) > 0 && w.random.IntN(4) == 0 {
		tx := w.open[w.random.IntN(len(w.open))]
		for _, scope := range w.changed[tx] {
			w.dir.Raise(w.scopes[scope].Hash(), tx.XID()) // the twin waits for the commit
			w.early[change{tx.XID(), scope}] = true
		}
		return
	}
	if n := len(w.committed); n > 0 {
		c := w.committed[max(0, n-1-w.random.IntN(12))]
		w.tell(c.scope, c.xid)
		w.dir.Raise(w.scopes[c.scope].Hash(), c.xid)
	}
}

func (w *world) tell(scope int, xid uint64) { w.told[w.scopes[scope].Hash()][xid] = true }

func (w *world) send() {
	var since coherence.Snapshot
	if latest := w.dir.Latest(); latest != nil {
		since = latest.Snapshot
	}
	w.flight = &flight{mark: w.dir.Sent(), sent: w.now}
	var err error
	if w.flight.result, err = w.log.Poll(w.t.Context(), since, 1<<20); err != nil {
		w.t.Fatal(err)
	}
}

// land brings the poll back, or loses it.
func (w *world) land() {
	f := w.flight
	w.flight = nil
	if w.random.IntN(6) == 0 {
		return
	}
	changes := f.result.Changes
	for _, c := range changes {
		w.told[c.Scope][c.XID] = true
	}
	if !w.exact && w.dir.Latest() != nil {
		switch w.random.IntN(12) {
		case 0: // too many to tell
			w.dir.Flush(f.result.Snapshot)
			changes = nil
		case 1: // some are past retention
			w.dir.Flush(w.dir.Latest().Snapshot)
		}
	}
	w.dir.Polled(f.result.Snapshot, f.sent, f.mark, changes)
	w.snapshots = append(w.snapshots, f.result.Snapshot)
	for range 6 {
		w.serve()
	}
}

// twin says whether the snapshot is valid for the scope, as far as the node was told.
func (w *world) twin(scope coherence.ScopeHash, s coherence.Snapshot) bool {
	if !s.Includes(w.floor) {
		return false
	}
	for xid := range w.told[scope] {
		if !s.Sees(xid) {
			return false
		}
	}
	return true
}

func (w *world) check() {
	if w.dir.Latest() == nil {
		return
	}
	for i, scope := range w.scopes {
		for _, s := range w.snapshots {
			w.checkGrace(i, s)
			got, want := w.dir.Check(scope.Hash(), s), w.twin(scope.Hash(), s)
			w.checkExplained(i, s, got)
			if got && !want {
				w.t.Errorf("seed %d: %s at %s counts as valid and is not: told of %v", w.seed, scope, s, w.told[scope.Hash()])
			}
			if w.exact && want && !got {
				w.t.Errorf("seed %d: %s at %s counts as invalid and is valid: told of %v, latest %s", w.seed, scope, s, w.told[scope.Hash()], w.dir.Latest())
			}
			w.checks++
			if got {
				w.valid++
			}
		}
	}
}

// checkGrace checks what the directory says of a value's grace: all that it lacks was committed since, and
// each with a grace that is not over.
func (w *world) checkGrace(scope int, s coherence.Snapshot) {
	hash := w.scopes[scope].Hash()
	grace, ok := w.dir.CheckGrace(hash, s, w.now)
	if !ok {
		return
	}
	if !s.Includes(w.floor) {
		w.t.Errorf("seed %d: %s is in its grace at %s, which does not include the floor", w.seed, w.scopes[scope], s)
	}
	for xid := range w.told[hash] {
		if s.Sees(xid) {
			continue
		}
		w.graced++
		given := w.graces[change{xid, scope}]
		if at := w.commit[xid]; grace.Since > at || grace.Until > at.Add(given) || w.now >= grace.Until {
			w.t.Errorf("seed %d: %s at %s is in its grace from %d to %d at %d: it lacks %d, committed at %d with a grace of %d",
				w.seed, w.scopes[scope], s, grace.Since, grace.Until, w.now, xid, at, given)
		}
	}
}

// checkExplained checks that what the directory says of a value and a scope is so: it is refused if it is not valid, and
// what it is said to lack it does lack.
func (w *world) checkExplained(scope int, s coherence.Snapshot, valid bool) {
	hash := w.scopes[scope].Hash()
	e := w.dir.Explain(hash, s, w.now)
	w.explained[e.Refused]++
	switch {
	case (e.Refused == coherence.NotRefused) != valid:
		w.t.Errorf("seed %d: %s at %s is valid %t, and explained as %+v", w.seed, w.scopes[scope], s, valid, e)
	case e.Lacks != 0 && (valid || s.Sees(e.Lacks)), (e.Refused == coherence.RefusedChanged) && e.Lacks == 0:
		w.t.Errorf("seed %d: %s at %s does not lack the change of %+v", w.seed, w.scopes[scope], s, e)
	case e.Heard < 0 || e.Heard > w.now || e.Since < 0 || e.Since > w.now:
		w.t.Errorf("seed %d: %s at %s: heard of at another time than 0 to %d: %+v", w.seed, w.scopes[scope], s, w.now, e)
	}
	for _, xid := range []uint64{e.Last, e.Lacks} {
		if xid != 0 && !w.told[hash][xid] && !w.underWay(scope, xid) {
			w.t.Errorf("seed %d: %s did not change in %d: %+v", w.seed, w.scopes[scope], xid, e)
		}
	}
}

// underWay reports whether the directory may have heard of a change that the twin waits for, or that was rolled back.
func (w *world) underWay(scope int, xid uint64) bool {
	_, raised := w.early[change{xid, scope}]
	return raised
}

// serve serves a value as a reader may, and checks that it does not go back.
func (w *world) serve() {
	if w.dir.Latest() == nil {
		return
	}
	scope := w.random.IntN(len(w.scopes))
	hash := w.scopes[scope].Hash()
	s := w.snapshots[w.random.IntN(len(w.snapshots))]
	if !w.dir.CheckNote(hash, s) || !w.dir.Check(hash, s) {
		return
	}
	w.dir.Note(hash, s)
	before := w.served[hash]
	for _, c := range w.committed {
		if c.scope == scope && before.Sees(c.xid) && !s.Sees(c.xid) {
			w.t.Errorf("seed %d: %s is served at %s, which does not see %d, after %s, which does", w.seed, w.scopes[scope], s, c.xid, before)
		}
	}
	if before.Timeline == 0 || s.Includes(before) {
		w.served[hash] = s
	}
}

// A directory, however small, never counts as valid what its twin does not, and never goes back.
func TestDirectorySafety(t *testing.T) {
	checks, valid, graced := 0, 0, 0
	explained := map[coherence.Refusal]int{}
	for seed := range uint64(*histories) {
		w := newWorld(t, seed, 1+int(seed%3)*8, 3+int(seed%5)*8, false)
		w.run(200)
		checks, valid, graced = checks+w.checks, valid+w.valid, graced+w.graced
		for refused, n := range w.explained {
			explained[refused] += n
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d checks, %d valid, %d changes in their grace", checks, valid, graced)
	for _, r := range []coherence.Refusal{
		coherence.RefusedGrace, coherence.RefusedForgotten, coherence.RefusedEarlier, coherence.RefusedFlushed, coherence.RefusedChanged,
	} {
		if explained[r] < checks/5000 {
			t.Errorf("%d of %d checks were explained as %q", explained[r], checks, r)
		}
	}
	if graced < checks/1000 {
		t.Errorf("%d checks met %d changes in their grace", checks, graced)
	}
	if valid < checks/50 {
		t.Error("next to nothing was valid: the test shows nothing")
	}
}

// With room for all scopes and up to three changes of each between two polls, a directory is as good
// as its twin, also while a transaction stays open all the time.
func TestDirectoryExact(t *testing.T) {
	checks, valid := 0, 0
	for seed := range uint64(*histories) {
		w := newWorld(t, seed, 1<<10, 6, true)
		w.run(250)
		checks, valid = checks+w.checks, valid+w.valid
		if t.Failed() {
			return
		}
	}
	t.Logf("%d checks, %d valid", checks, valid)
	if valid < checks/50 {
		t.Error("next to nothing was valid: the test shows nothing")
	}
}

// A hot entity that is written once between any two polls stays cacheable for a quarter of an hour of polls while a
// transaction is open.
func TestDirectoryHotEntity(t *testing.T) {
	log, dir := logtest.NewMemory(), coherence.NewDirectory(0)
	hot := coherence.Entity("n", "hot")
	log.Begin() // stays open
	dir.Reset(log.Snapshot())
	dir.Polled(log.Snapshot(), 0, dir.Sent(), nil)
	for range 4 * 900 {
		since := dir.Latest().Snapshot
		before := log.Snapshot()
		xid := log.Commit(hot)
		value := log.Snapshot()
		if dir.Raise(hot.Hash(), xid); dir.Check(hot.Hash(), before) || !dir.Check(hot.Hash(), value) {
			t.Fatalf("after the hint of %d: valid before %t, after %t", xid, dir.Check(hot.Hash(), before), dir.Check(hot.Hash(), value))
		}
		mark := dir.Sent()
		r, err := log.Poll(t.Context(), since, 10)
		if err != nil {
			t.Fatal(err)
		}
		dir.Polled(r.Snapshot, 0, mark, r.Changes)
		if dir.Check(hot.Hash(), before) || !dir.Check(hot.Hash(), value) {
			t.Fatalf("after the poll of %d: valid before %t, after %t", xid, dir.Check(hot.Hash(), before), dir.Check(hot.Hash(), value))
		}
	}
}

// A cell that is full of hints that came while a poll was on its way still takes the poll's row.
func TestDirectoryFullCell(t *testing.T) {
	log, dir := logtest.NewMemory(), coherence.NewDirectory(0)
	hot := coherence.Entity("n", "hot")
	dir.Reset(log.Snapshot())
	dir.Polled(log.Snapshot(), 0, dir.Sent(), nil)
	late := log.Begin()
	late.Change(hot)
	since, mark := log.Snapshot(), dir.Sent()
	late.Commit()
	r, err := log.Poll(t.Context(), since, 10)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		dir.Raise(hot.Hash(), log.Commit(hot))
	}
	dir.Polled(r.Snapshot, 0, mark, r.Changes)
	// Sees the three hints, as no real snapshot does without the row.
	odd := log.Snapshot()
	odd.Xmin, odd.Xip = late.XID(), []uint64{late.XID()}
	if dir.Check(hot.Hash(), odd) || !dir.Check(hot.Hash(), log.Snapshot()) {
		t.Errorf("without the row valid %t, with it %t", dir.Check(hot.Hash(), odd), dir.Check(hot.Hash(), log.Snapshot()))
	}
}

// Notes beyond their bound are replaced by one that refuses more, and all are gone after a poll that
// was sent after them.
func TestDirectoryNotesBound(t *testing.T) {
	log, dir := logtest.NewMemory(), coherence.NewDirectory(0)
	old := log.Snapshot()
	dir.Reset(old)
	dir.Polled(old, 0, dir.Sent(), nil)
	log.Commit()
	newer := log.Snapshot()
	room := 0
	for i := range 1 << 15 {
		if dir.Note(coherence.ScopeHash(i), newer) {
			room++
		}
	}
	if room != 1<<14 {
		t.Errorf("room for %d notes, want %d", room, 1<<14)
	}
	for _, value := range []coherence.ScopeHash{0, 1 << 14, 1<<15 - 1, 1 << 20} {
		if dir.CheckNote(value, old) || !dir.CheckNote(value, newer) {
			t.Errorf("value %d: old %t, newer %t; want false, true", value, dir.CheckNote(value, old), dir.CheckNote(value, newer))
		}
	}
	mark := dir.Sent()
	log.Commit()
	newest := log.Snapshot()
	dir.Note(7, newest) // while the poll is on its way
	dir.Polled(newer, 0, mark, nil)
	if !dir.CheckNote(0, old) || !dir.CheckNote(1<<20, old) {
		t.Error("notes outlive a poll that was sent after them")
	}
	if dir.CheckNote(7, newer) || !dir.CheckNote(7, newest) {
		t.Error("a note made while a poll was on its way is gone")
	}
}
