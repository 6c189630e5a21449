package model

import (
	"cmp"
	"errors"
	"iter"
	"maps"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// FirstXID is an id from which the transactions of a young server count.
const FirstXID = 700

// watchLimit is how many entities, or tags, a statement may change before the watch names the namespace,
// or everything, instead.
const watchLimit = 1000

// What a statement says that did not do its work.
var (
	// ErrBlocked: the statement waits for [Tx.Waits]; go on with [Tx.Resume].
	ErrBlocked = errors.New("model: the row is locked by another transaction")
	// ErrDuplicate: there is such a key already. The transaction has failed.
	ErrDuplicate = errors.New("model: duplicate key")
	// ErrDeadlock: the transaction would wait for one that waits for it. It has failed.
	ErrDeadlock = errors.New("model: deadlock")
	// ErrFailed: an earlier statement failed; only a rollback helps.
	ErrFailed = errors.New("model: the transaction has failed")
	// ErrEnded: the transaction was committed or rolled back, or the server crashed since it began.
	ErrEnded = errors.New("model: the transaction has ended")
	// ErrNoSavepoint: there is none to go back to.
	ErrNoSavepoint = errors.New("model: no savepoint")
)

// Watch is what freshet.watch was told of the table: the text of a row's key is its decimal id.
type Watch[R any] struct {
	Namespace string // of the entities; "" = the table is not watched
	// Fixed are the tags without columns: every row has them.
	Fixed []string
	// Tags are those that are made from the row's columns. nil = none.
	Tags func(key uint64, row R) []string
}

// Postgres is one server with one table of rows R and Freshet's schema. R is copied by assignment.
type Postgres[R any] struct {
	watch Watch[R]

	rows map[uint64][]*version[R] // key -> versions, the newest last; none of a transaction that was rolled back
	keys []uint64                 // of rows, ascending

	first uint64   // the id of the first transaction
	next  uint64   // the id of the next
	xmax  uint64   // one past the highest finished transaction
	open  []*Tx[R] // those with an id, in progress, by id
	users []*Tx[R] // open transactions that have used the table
	// truncating holds the whole table; nil = nobody does.
	truncating *Tx[R]

	timeline, timelines uint64 // 0 = none has begun since the crash; how many have
	horizon, upcoming   coherence.Snapshot
	turned              time.Duration
	log                 []coherence.Change // committed, by transaction id
	generations         generations
	regenerations       int // changes of generations, those included that were lost

	epoch   int // of the server's process: connections of an earlier one are broken
	commits []durable[R]
	written uint64 // one past the highest id in the write-ahead log
	flushed uint64 // the same of the part that a crash leaves

	current coherence.Snapshot // of a statement sent now; valid if known
	known   bool
}

// version is one state of a row, from the change that made it to the one that ended it.
type version[R any] struct {
	value R
	// first is the row's version that was inserted: updates continue a row, another insert does not.
	first *version[R]
	made  *Tx[R]
	ended *Tx[R] // nil = no one has
	// gone: a committed TRUNCATE took it from every snapshot.
	gone bool
}

// durable is a commit, with what undoes it.
type durable[R any] struct {
	tx      *Tx[R]
	flushed uint64 // what it flushed
	// Of freshet.trim and begin_timeline.
	trimmed           []coherence.Change
	horizon, upcoming coherence.Snapshot
	turned            time.Duration
	system            bool
	// before are the generations that the commit replaced; nil = it replaced none.
	before *generations
}

// generations are the numbers, never changed in place, and what polls say of them.
type generations struct {
	numbers map[string]uint32 // namespace, "" for all -> its generation
	polled  *coherence.Generations
}

// NewPostgres makes a server with an empty table, whose next transaction gets the id first, at least 3.
// It has no timeline until [Postgres.Renew].
func NewPostgres[R any](w Watch[R], first uint64) *Postgres[R] {
	p := &Postgres[R]{watch: w, rows: map[uint64][]*version[R]{}, first: first, next: first, xmax: first, written: first, flushed: first}
	p.horizon = p.Snapshot()
	p.upcoming = p.horizon
	p.regenerate(nil)
	return p
}

// Epoch counts the crashes and failovers: a connection made in an earlier one is broken.
func (p *Postgres[R]) Epoch() int { return p.epoch }

// Timeline is the current one; 0 = none, and what is read proves nothing.
func (p *Postgres[R]) Timeline() uint64 { return p.timeline }

// NextXID is the id that the next writer gets.
func (p *Postgres[R]) NextXID() uint64 { return p.next }

// Snapshot is what a statement sent now, outside of a transaction, sees. Its Xip is shared: it must not
// be changed.
func (p *Postgres[R]) Snapshot() coherence.Snapshot {
	if !p.known {
		p.current, p.known = p.snapshot(nil), true
	}
	return p.current
}

// snapshot is that of a statement of the transaction, whose own id counts for xmin but is not listed.
func (p *Postgres[R]) snapshot(own *Tx[R]) coherence.Snapshot {
	s := coherence.Snapshot{Timeline: p.timeline, Xmin: p.xmax, Xmax: p.xmax}
	n := sort.Search(len(p.open), func(i int) bool { return p.open[i].xid >= p.xmax })
	if n == 0 {
		return s
	}
	s.Xmin = p.open[0].xid
	s.Xip = make([]uint64, 0, n)
	for _, tx := range p.open[:n] {
		if tx != own {
			s.Xip = append(s.Xip, tx.xid)
		}
	}
	return s
}

// Busy reports whether a TRUNCATE in progress makes readers of the table wait.
func (p *Postgres[R]) Busy() bool { return p.truncating != nil }

// Get is the row of the key as [Postgres.Snapshot] sees it.
func (p *Postgres[R]) Get(key uint64) (row R, ok bool) { return p.get(key, nil) }

func (p *Postgres[R]) get(key uint64, own *Tx[R]) (row R, ok bool) {
	if v := p.visible(key, own); v != nil {
		return v.value, true
	}
	return row, false
}

// visible is the version of the row that a statement sent now by own sees; nil = there is none.
func (p *Postgres[R]) visible(key uint64, own *Tx[R]) *version[R] {
	for _, v := range slices.Backward(p.rows[key]) {
		switch {
		case v.gone || !(v.made == own || v.made.committed):
		case v.ended == nil || !(v.ended == own || v.ended.committed):
			return v
		default:
			return nil
		}
	}
	return nil
}

// All yields the rows as [Postgres.Snapshot] sees them, by key. The server must not change meanwhile.
func (p *Postgres[R]) All() iter.Seq2[uint64, R] {
	return func(yield func(uint64, R) bool) {
		for _, key := range p.keys {
			if row, ok := p.get(key, nil); ok && !yield(key, row) {
				return
			}
		}
	}
}

// GetAt is the row of the key as an earlier snapshot of the present timeline sees it.
func (p *Postgres[R]) GetAt(s coherence.Snapshot, key uint64) (row R, ok bool) {
	for _, v := range slices.Backward(p.rows[key]) {
		switch {
		case v.gone || !(v.made.committed && s.Sees(v.made.xid)):
		case v.ended == nil || !(v.ended.committed && s.Sees(v.ended.xid)):
			return v.value, true
		default:
			return row, false
		}
	}
	return row, false
}

// Poll is the query of [coherence.PostgresLog]. The snapshots' Xip are shared: they must not be changed.
func (p *Postgres[R]) Poll(since coherence.Snapshot, limit int) coherence.PollResult {
	r := coherence.PollResult{Snapshot: p.Snapshot(), Horizon: p.horizon, Generations: p.generations.polled}
	r.Horizon.Timeline = p.timeline
	// A transaction of since's list counts also when this server gave the id to another one.
	found := p.log[p.logFrom(since.Xmax):max(p.logFrom(since.Xmax), p.logFrom(p.xmax))]
	total := len(found)
	for _, xid := range since.Xip {
		total += p.logFrom(xid+1) - p.logFrom(xid)
	}
	switch {
	case total > limit:
		r.Overrun = true
	case total > 0:
		r.Changes = make([]coherence.Change, 0, total)
		r.Changes = append(r.Changes, found...)
		for _, xid := range since.Xip {
			r.Changes = append(r.Changes, p.log[p.logFrom(xid):p.logFrom(xid+1)]...)
		}
	}
	return r
}

// logFrom is the first row of the log whose transaction is xid or higher.
func (p *Postgres[R]) logFrom(xid uint64) int {
	i, _ := slices.BinarySearchFunc(p.log, xid, func(c coherence.Change, xid uint64) int { return cmp.Compare(c.XID, xid) })
	return i
}

// Renew is freshet.begin_timeline: it begins a timeline if there is none or if it is the broken one. 0 =
// only if there is none.
func (p *Postgres[R]) Renew(broken uint64) {
	if p.timeline != 0 && p.timeline != broken {
		return
	}
	d := p.system()
	p.timelines++
	p.timeline = p.timelines
	p.horizon = p.Snapshot() // as it was before this commits
	p.upcoming = p.horizon
	p.finish(d)
}

// Trim is freshet.trim at the time now, which only counts on: it deletes at most atMost changes, 1 or
// more, that every reader has been able to see for longer than keep, and returns how many.
func (p *Postgres[R]) Trim(now, keep time.Duration, atMost int) int {
	d := p.system()
	turns := now-p.turned > keep
	if turns {
		p.horizon, p.upcoming, p.turned = p.upcoming, p.Snapshot(), now
	}
	upto := p.horizon
	upto.Timeline = 1 // its numbers are this server's
	p.log = slices.DeleteFunc(p.log, func(c coherence.Change) bool {
		if len(d.trimmed) == atMost || !(upto.Sees(c.XID) || c.XID >= p.xmax) {
			return false
		}
		d.trimmed = append(d.trimmed, c)
		return true
	})
	if turns || len(d.trimmed) > 0 {
		p.finish(d)
	}
	return len(d.trimmed)
}

// SetGeneration is freshet.set_generation in a transaction of its own, which begins when nobody else is at
// it. It returns the transaction's id.
func (p *Postgres[R]) SetGeneration(namespace string, generation uint32) (xid uint64) {
	tx, before := p.Begin(), p.generations
	tx.write() // it locks the row of the generations, whatever comes of it
	d := durable[R]{tx: tx}
	if cmp.Or(before.numbers[namespace], 1) != generation {
		d.before = &before
		numbers := maps.Clone(before.numbers)
		if numbers == nil {
			numbers = map[string]uint32{}
		}
		numbers[namespace] = generation
		p.regenerate(numbers)
		tx.log, tx.graces = []coherence.Scope{coherence.AllGenerations()}, make([]time.Duration, 1)
	}
	tx.end(true)
	p.durable(d)
	return tx.xid
}

func (p *Postgres[R]) regenerate(numbers map[string]uint32) {
	p.regenerations++
	p.generations = generations{numbers, coherence.NewGenerations(strconv.Itoa(p.regenerations), numbers)}
}

// system starts a transaction of Freshet's own, as of the present state.
func (p *Postgres[R]) system() durable[R] {
	return durable[R]{tx: p.Begin(), system: true, horizon: p.horizon, upcoming: p.upcoming, turned: p.turned}
}

// finish commits it.
func (p *Postgres[R]) finish(d durable[R]) {
	d.tx.write()
	d.tx.end(true)
	p.durable(d)
}

func (p *Postgres[R]) durable(d durable[R]) {
	p.flushed = p.written
	d.flushed = p.flushed
	p.commits = append(p.commits, d)
}

// Crash restarts the server: transactions in progress are gone, and there is no timeline. With reuse, ids
// whose traces had not been flushed are given again; else none is. A real server is in between.
func (p *Postgres[R]) Crash(reuse bool) {
	p.restart(p.flushed, p.written, reuse)
}

func (p *Postgres[R]) restart(flushed, written uint64, reuse bool) {
	for len(p.open) > 0 {
		p.open[len(p.open)-1].end(false)
	}
	for _, tx := range p.users {
		tx.ended = true
	}
	p.users, p.truncating = nil, nil
	p.epoch++
	p.timeline, p.known = 0, false
	p.next = written
	if reuse {
		p.next = flushed
	}
	p.xmax, p.written, p.flushed = p.next, p.next, p.next
}

// Commits is how many commits the server has had that a failover could lose: [Postgres.Failover].
func (p *Postgres[R]) Commits() int { return len(p.commits) }

// Failover goes on with an asynchronous standby that lacks the last n commits, trims and renewals
// included, and returns the ids of the lost writers, the latest first. With reuse, their ids are given
// again. There is no timeline.
func (p *Postgres[R]) Failover(n int, reuse bool) (lost []uint64) {
	written := p.written
	for len(p.open) > 0 { // first: they stand on what is undone
		p.open[len(p.open)-1].end(false)
	}
	for range min(n, len(p.commits)) {
		d := p.commits[len(p.commits)-1]
		p.commits = p.commits[:len(p.commits)-1]
		p.undo(d)
		if !d.system {
			lost = append(lost, d.tx.xid)
		}
	}
	flushed := p.flushed
	switch {
	case len(p.commits) > 0:
		flushed = p.commits[len(p.commits)-1].flushed
	case n > 0:
		flushed = p.first
	}
	p.restart(flushed, written, reuse)
	return lost
}

// undo takes back the last commit.
func (p *Postgres[R]) undo(d durable[R]) {
	if d.system {
		p.horizon, p.upcoming, p.turned = d.horizon, d.upcoming, d.turned
		for _, c := range d.trimmed {
			p.log = slices.Insert(p.log, p.logFrom(c.XID+1), c)
		}
		return
	}
	behind := p.logFrom(d.tx.xid + 1)
	p.log = slices.Delete(p.log, behind-len(d.tx.log), behind)
	d.tx.committed = false
	if d.before != nil {
		p.generations = *d.before
	}
	for _, c := range d.tx.changes {
		if c.ended != nil {
			c.ended.gone = false
		}
	}
	d.tx.undo(0)
}

// Dump is a copy of the database, as pg_dump writes it.
type Dump[R any] struct {
	rows              map[uint64]R
	log               []coherence.Change
	horizon, upcoming coherence.Snapshot
	turned            time.Duration
	numbers           map[string]uint32
}

// Dump is the database as [Postgres.Snapshot] sees it.
func (p *Postgres[R]) Dump() *Dump[R] {
	return &Dump[R]{
		rows: maps.Collect(p.All()), log: slices.Clone(p.log),
		horizon: p.horizon, upcoming: p.upcoming, turned: p.turned, numbers: p.generations.numbers,
	}
}

// Restore makes a server of the dump, whose next transaction gets the id first. The log and the horizon
// are in the old server's numbers, and there is no timeline.
func Restore[R any](w Watch[R], d *Dump[R], first uint64) *Postgres[R] {
	p := NewPostgres(Watch[R]{}, first)
	tx := p.Begin()
	rows := make([]Row[R], 0, len(d.rows))
	for key, row := range d.rows {
		rows = append(rows, Row[R]{key, row})
	}
	if _, err := tx.Insert(rows...); err != nil {
		panic(err) // the keys of a map are not twice there
	}
	if err := tx.Commit(); err != nil {
		panic(err)
	}
	p.watch = w
	p.log = slices.Clone(d.log)
	p.horizon, p.upcoming, p.turned = d.horizon, d.upcoming, d.turned
	p.regenerate(d.numbers)
	return p
}
