package logtest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// Writer is how [Exercise] writes to what a log is polled from.
type Writer interface {
	// Begin starts a transaction that has an id of its own.
	Begin(t *testing.T) Transaction
}

// Transaction is one open transaction of a [Writer].
type Transaction interface {
	XID() uint64
	// Change says that scopes change with the transaction.
	Change(scopes ...coherence.Scope)
	// SetGeneration gives the namespace, "" for all, a generation with the transaction.
	SetGeneration(namespace string, generation uint32)
	// Grace is that of what changes from here on, in whole milliseconds; 0 = none.
	Grace(d time.Duration)
	Commit()
	Rollback()
}

// Exercise checks what [coherence.Log] promises. open makes an empty log with its writer; the suite
// closes the log.
func Exercise(t *testing.T, open func(t *testing.T) (coherence.Log, Writer)) {
	t.Helper()
	for name, check := range map[string]func(*testing.T, *reader){
		"NothingTwice":    nothingTwice,
		"LateCommit":      lateCommit,
		"Rollback":        rollback,
		"Grace":           graces,
		"LongTransaction": longTransaction,
		"Histories":       histories,
		"Overrun":         overrun,
		"Trim":            trim,
		"TrimWhileOpen":   trimWhileOpen,
		"Renew":           renew,
		"Generations":     generations,
	} {
		t.Run(name, func(t *testing.T) {
			log, writer := open(t)
			r := &reader{t: t, log: log, Writer: writer}
			r.poll()
			check(t, r)
			if err := log.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if _, err := log.Poll(t.Context(), coherence.Snapshot{}, 1); err == nil {
				t.Error("a closed log can be polled")
			}
		})
	}
}

// reader polls as a node does.
type reader struct {
	Writer
	t    *testing.T
	log  coherence.Log
	last coherence.PollResult
}

// poll polls since the last poll, checks what every poll must hold, and returns the changes as
// transaction ids with the number of their rows.
func (r *reader) poll() map[uint64]int {
	r.t.Helper()
	since := r.last.Snapshot
	got, err := r.log.Poll(r.t.Context(), since, 100_000)
	if err != nil {
		r.t.Fatalf("poll: %v", err)
	}
	if got.Overrun {
		r.t.Fatal("poll: overrun")
	}
	if got.Snapshot.Timeline == 0 || (since.Timeline != 0 && !got.Snapshot.Includes(since)) {
		r.t.Fatalf("poll at %s after %s", got.Snapshot, since)
	}
	if !got.Snapshot.Includes(got.Horizon) {
		r.t.Fatalf("poll at %s does not include its horizon %s", got.Snapshot, got.Horizon)
	}
	count := map[uint64]int{}
	for _, change := range got.Changes {
		count[change.XID]++
		if since.Sees(change.XID) || !got.Snapshot.Sees(change.XID) {
			r.t.Errorf("poll from %s to %s brought transaction %d", since, got.Snapshot, change.XID)
		}
	}
	r.last = got
	return count
}

func (r *reader) want(want map[uint64]int) {
	r.t.Helper()
	if got := r.poll(); !maps.Equal(got, want) {
		r.t.Errorf("polled %v (transaction: changes), want %v", got, want)
	}
}

func (r *reader) commit(scopes ...coherence.Scope) uint64 {
	tx := r.Begin(r.t)
	tx.Change(scopes...)
	tx.Commit()
	return tx.XID()
}

func nothingTwice(_ *testing.T, r *reader) {
	r.want(map[uint64]int{})
	a := r.commit(coherence.Entity("n", "1"), coherence.Tag("t"))
	b := r.commit(coherence.Entity("n", "1"))
	r.want(map[uint64]int{a: 2, b: 1})
	r.want(map[uint64]int{})
	r.last.Snapshot = coherence.Snapshot{} // a new node reads all that the log holds
	r.want(map[uint64]int{a: 2, b: 1})
	if r.last.Changes[0].Scope == r.last.Changes[1].Scope && r.last.Changes[1].Scope == r.last.Changes[2].Scope {
		r.t.Error("different scopes have come back as one")
	}
}

func lateCommit(_ *testing.T, r *reader) {
	early := r.Begin(r.t)
	early.Change(coherence.Entity("n", "early"))
	late := r.commit(coherence.Entity("n", "late"))
	r.want(map[uint64]int{late: 1})
	r.want(map[uint64]int{})
	early.Commit()
	r.want(map[uint64]int{early.XID(): 1})
	r.want(map[uint64]int{})
}

func rollback(_ *testing.T, r *reader) {
	tx := r.Begin(r.t)
	tx.Change(coherence.Entity("n", "1"))
	r.want(map[uint64]int{})
	tx.Rollback()
	r.want(map[uint64]int{})
	if !r.last.Snapshot.Sees(tx.XID()) {
		r.t.Errorf("%s does not see transaction %d, which has ended", r.last.Snapshot, tx.XID())
	}
}

func graces(t *testing.T, r *reader) {
	t.Helper()
	tx := r.Begin(t)
	tx.Change(coherence.Entity("n", "before"))
	tx.Grace(1500 * time.Millisecond)
	tx.Change(coherence.Entity("n", "with"))
	tx.Grace(0)
	tx.Change(coherence.Entity("n", "after"))
	tx.Commit()
	r.want(map[uint64]int{tx.XID(): 3})
	for _, c := range r.last.Changes {
		want := time.Duration(0)
		if c.Scope == coherence.Entity("n", "with").Hash() {
			want = 1500 * time.Millisecond
		}
		if c.Grace != want {
			t.Errorf("a change has a grace of %v, want %v", c.Grace, want)
		}
	}
	r.commit(coherence.Entity("n", "next"))
	r.poll()
	if got := r.last.Changes[0].Grace; got != 0 {
		t.Errorf("the next transaction has a grace of %v", got)
	}
}

func longTransaction(_ *testing.T, r *reader) {
	long := r.Begin(r.t)
	long.Change(coherence.Entity("n", "long"))
	for i := range 50 {
		xid := r.commit(coherence.Entity("n", fmt.Sprint(i)))
		r.want(map[uint64]int{xid: 1})
	}
	long.Commit()
	r.want(map[uint64]int{long.XID(): 1})
}

func histories(t *testing.T, r *reader) {
	t.Helper()
	const seed = 1
	random := rand.New(rand.NewPCG(seed, 0))
	written, read := map[uint64]int{}, map[uint64]int{}
	var open []Transaction
	for range 600 {
		switch n := random.IntN(10); {
		case n < 4 && len(open) < 10:
			tx := r.Begin(t)
			rows := random.IntN(4)
			for i := range rows {
				tx.Change(coherence.Entity("n", fmt.Sprint(i)))
			}
			open = append(open, tx)
			if rows > 0 {
				written[tx.XID()] = rows
			}
		case n < 8 && len(open) > 0:
			i := random.IntN(len(open))
			if random.IntN(4) == 0 {
				open[i].Rollback()
				delete(written, open[i].XID())
			} else {
				open[i].Commit()
			}
			open = slices.Delete(open, i, i+1)
		default:
			for xid, rows := range r.poll() {
				read[xid] += rows
			}
		}
	}
	for _, tx := range open {
		tx.Commit()
	}
	for xid, rows := range r.poll() {
		read[xid] += rows
	}
	if !maps.Equal(written, read) {
		t.Errorf("seed %d: committed %v, polled %v (transaction: changes)", seed, written, read)
	}
}

func overrun(t *testing.T, r *reader) {
	t.Helper()
	tx := r.Begin(t)
	for i := range 11 {
		tx.Change(coherence.Entity("n", fmt.Sprint(i)))
	}
	tx.Commit()
	got, err := r.log.Poll(t.Context(), r.last.Snapshot, 10)
	if err != nil || !got.Overrun || len(got.Changes) != 0 || !got.Snapshot.Sees(tx.XID()) {
		t.Errorf("11 changes at a limit of 10: %+v, %v; want an overrun that sees %d", got, err, tx.XID())
	}
	got, err = r.log.Poll(t.Context(), r.last.Snapshot, 11)
	if err != nil || got.Overrun || len(got.Changes) != 11 {
		t.Errorf("11 changes at a limit of 11: overrun %t, %d changes, %v", got.Overrun, len(got.Changes), err)
	}
}

// trimAll deletes what may be deleted.
func (r *reader) trimAll() (gone int) {
	r.t.Helper()
	for range 2 { // the first names the horizon that the second makes current
		n, err := r.log.Trim(r.t.Context(), 0)
		if err != nil {
			r.t.Fatalf("trim: %v", err)
		}
		gone += n
	}
	return gone
}

func trim(t *testing.T, r *reader) {
	t.Helper()
	slept := r.last.Snapshot
	a := r.commit(coherence.Entity("n", "1"))
	if n, err := r.log.Trim(t.Context(), 1<<40); n != 0 || err != nil {
		t.Errorf("trim of what is younger than kept: %d, %v", n, err)
	}
	r.want(map[uint64]int{a: 1})
	if gone := r.trimAll(); gone != 1 {
		t.Errorf("trim deleted %d changes, want 1", gone)
	}
	b := r.commit(coherence.Entity("n", "2"))
	before := r.last.Snapshot
	r.want(map[uint64]int{b: 1}) // one that polled loses nothing
	if !before.Includes(r.last.Horizon) {
		t.Errorf("one that polled at %s is told of a horizon %s", before, r.last.Horizon)
	}
	if slept.Includes(r.last.Horizon) {
		t.Errorf("one that slept since %s is not told: horizon %s", slept, r.last.Horizon)
	}
	if !r.last.Horizon.Sees(a) || r.last.Horizon.Sees(b) {
		t.Errorf("horizon %s, want one that sees %d and not %d", r.last.Horizon, a, b)
	}
}

func trimWhileOpen(t *testing.T, r *reader) {
	t.Helper()
	long := r.Begin(t)
	long.Change(coherence.Entity("n", "long"))
	a := r.commit(coherence.Entity("n", "1"))
	r.want(map[uint64]int{a: 1})
	if gone := r.trimAll(); gone != 1 {
		t.Errorf("trim deleted %d changes, want the one of %d", gone, a)
	}
	before := r.last.Snapshot
	long.Commit()
	r.want(map[uint64]int{long.XID(): 1})
	if !before.Includes(r.last.Horizon) {
		t.Errorf("one that polled at %s is told of a horizon %s", before, r.last.Horizon)
	}
}

func renew(t *testing.T, r *reader) {
	t.Helper()
	first := r.last.Snapshot.Timeline
	if err := r.log.Renew(t.Context(), first+1); err != nil {
		t.Fatal(err)
	}
	r.poll()
	if r.last.Snapshot.Timeline != first {
		t.Errorf("renewing another timeline replaced %d by %d", first, r.last.Snapshot.Timeline)
	}
	a := r.commit(coherence.Entity("n", "1"))
	if err := errors.Join(r.log.Renew(t.Context(), first), r.log.Renew(t.Context(), first)); err != nil {
		t.Fatal(err)
	}
	r.last = coherence.PollResult{}
	r.poll()
	if second := r.last.Snapshot.Timeline; second == first || second == 0 {
		t.Errorf("timeline %d after renewing %d", second, first)
	}
	// Whatever is read in the new timeline sees what was written before it: the log need not tell.
	if !r.last.Horizon.Sees(a) {
		t.Errorf("horizon %s of the new timeline does not see %d, which was before it", r.last.Horizon, a)
	}
	b := r.commit(coherence.Entity("n", "1"))
	r.want(map[uint64]int{b: 1})
}

func generations(t *testing.T, r *reader) {
	t.Helper()
	want := func(namespace string, global, own uint32) {
		t.Helper()
		r.poll()
		if got := r.last.Generations.Of(namespace); got != (cluster.Generation{Global: global, Namespace: own}) {
			t.Errorf("generation of %q is %v, want %d.%d", namespace, got, global, own)
		}
	}
	set := func(namespace string, generation uint32) Transaction {
		tx := r.Begin(t)
		tx.SetGeneration(namespace, generation)
		return tx
	}
	want("n", 1, 1)
	first := r.last.Generations.Version()
	r.commit(coherence.Entity("n", "1"))
	want("n", 1, 1)
	if again := r.last.Generations.Version(); again != first {
		t.Errorf("generations that have not changed are of version %q and then of %q", first, again)
	}

	open := set("n", 2)
	want("n", 1, 1) // not before it commits
	open.Commit()
	want("n", 1, 2)
	if !r.last.Snapshot.Sees(open.XID()) {
		t.Errorf("a poll at %s tells what transaction %d did", r.last.Snapshot, open.XID())
	}
	if second := r.last.Generations.Version(); second == first || second == "" {
		t.Errorf("other generations are of version %q, as those before", second)
	}
	want("m", 1, 1)
	set("", 3).Commit()
	want("n", 3, 2)
	want("m", 3, 1)
	set("n", 9).Rollback()
	want("n", 3, 2)
	set("n", 1).Commit() // back
	want("n", 3, 1)
	if again := r.last.Generations.Version(); again == first {
		t.Errorf("version %q stands for two states", first)
	}
	r.last = coherence.PollResult{} // a new node
	want("n", 3, 1)
}
