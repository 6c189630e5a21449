package model

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// Row is a row with its key.
type Row[R any] struct {
	Key   uint64
	Value R
}

// Tx is one transaction, on a connection of its own.
type Tx[R any] struct {
	server *Postgres[R]
	xid    uint64 // 0 = it has written nothing

	changes []change[R]
	log     []coherence.Scope
	graces  []time.Duration // of log
	grace   time.Duration   // of what is logged from here on
	points  []savepoint     // the innermost last
	highest uint64          // the highest id of its subtransactions that did not fail

	used      bool // the table
	failed    bool
	ended     bool
	committed bool

	waits *statement[R]       // nil = it does not wait
	fixed *coherence.Snapshot // of REPEATABLE READ
}

// change is one step that undoing takes back: a version of a row that was made, one that was ended, or
// both. truncates: the table was taken for the transaction alone.
type change[R any] struct {
	key         uint64
	made, ended *version[R]
	truncates   bool
}

// savepoint is the state to go back to, and the subtransaction that began with it.
type savepoint struct {
	changes, log int
	xid          uint64 // of the subtransaction; 0 = it has written nothing
	highest      uint64 // the highest of it and those in it
	used         bool
	grace        time.Duration
}

// statement is one that changes the table.
type statement[R any] struct {
	kind statementKind
	rows []Row[R] // insert, upsert
	keys []uint64 // update, delete, rekey
	// began: it has its snapshot, and targets are the rows of keys that it saw.
	began   bool
	targets []target[R]
	set     func(key uint64, old R) R // update; upsert of a row that is there, nil = its new value
	to      uint64                    // rekey
}

type statementKind uint8

const (
	kindInsert statementKind = iota
	kindUpsert
	kindUpdate
	kindDelete
	kindRekey
	kindTruncate
)

type target[R any] struct {
	key uint64
	row *version[R] // the row's first version
}

// Begin starts a transaction at READ COMMITTED.
func (p *Postgres[R]) Begin() *Tx[R] { return &Tx[R]{server: p} }

// BeginFixed starts a transaction at REPEATABLE READ whose snapshot is that of now; it can only read.
func (p *Postgres[R]) BeginFixed() *Tx[R] {
	at := p.Snapshot()
	return &Tx[R]{server: p, fixed: &at}
}

// XID is the transaction's id, also after its end; 0 = it has written nothing, and has none. Its log
// rows carry it, whatever savepoint they are written in.
func (t *Tx[R]) XID() uint64 { return t.xid }

// Log is what the transaction has logged so far. It must not be changed.
func (t *Tx[R]) Log() []coherence.Scope { return t.log }

// Open reports whether the transaction has not ended. A failed one is open until it is rolled back.
func (t *Tx[R]) Open() bool { return !t.ended }

// Committed reports whether it has ended well, and no failover took it back.
func (t *Tx[R]) Committed() bool { return t.committed }

// Waits is the transaction that must end before the present statement can go on: [ErrBlocked]. nil =
// none any more: [Tx.Resume] will do it.
func (t *Tx[R]) Waits() *Tx[R] {
	if t.ended || t.waits == nil {
		return nil
	}
	return t.blocker(t.waits)
}

// Snapshot is what the next statement of the transaction sees, besides its own changes.
func (t *Tx[R]) Snapshot() coherence.Snapshot {
	if t.fixed != nil {
		return *t.fixed
	}
	return t.server.snapshot(t)
}

// Get reads a row: the transaction's own state of it, or else what the statement's snapshot sees. It
// fails with [ErrBlocked] while another transaction truncates the table; ask again then.
func (t *Tx[R]) Get(key uint64) (row R, ok bool, err error) {
	if err := t.usable(); err != nil {
		return row, false, err
	}
	if t.server.truncating != nil && t.server.truncating != t {
		return row, false, ErrBlocked
	}
	t.uses()
	if t.fixed != nil {
		row, ok = t.server.GetAt(*t.fixed, key)
	} else {
		row, ok = t.server.get(key, t)
	}
	return row, ok, nil
}

// Insert adds rows in one statement. [ErrDuplicate] if there is one of the keys.
func (t *Tx[R]) Insert(rows ...Row[R]) (int, error) {
	return t.start(&statement[R]{kind: kindInsert, rows: rows})
}

// Upsert adds a row, or sets the one that is there: on conflict do update. set makes the new row of the
// present one; nil = the given row.
func (t *Tx[R]) Upsert(key uint64, row R, set func(key uint64, old R) R) (int, error) {
	return t.start(&statement[R]{kind: kindUpsert, rows: []Row[R]{{key, row}}, set: set})
}

// Update sets the rows of the keys that are there, in one statement, and returns how many. set is called
// with the newest committed state of each, or the transaction's own.
func (t *Tx[R]) Update(keys []uint64, set func(key uint64, old R) R) (int, error) {
	return t.start(&statement[R]{kind: kindUpdate, keys: keys, set: set})
}

// UpdateAll is [Tx.Update] of every row.
func (t *Tx[R]) UpdateAll(set func(key uint64, old R) R) (int, error) {
	return t.Update(t.server.keys, set)
}

// Delete removes the rows of the keys that are there, in one statement, and returns how many.
func (t *Tx[R]) Delete(keys ...uint64) (int, error) {
	return t.start(&statement[R]{kind: kindDelete, keys: keys})
}

// Rekey gives the row of the key another key. [ErrDuplicate] if there is one.
func (t *Tx[R]) Rekey(key, to uint64) (int, error) {
	return t.start(&statement[R]{kind: kindRekey, keys: []uint64{key}, to: to})
}

// Truncate empties the table, for every snapshot once it commits. It waits for all that have used the table
// and are open; until the end, all others wait.
func (t *Tx[R]) Truncate() (int, error) {
	return t.start(&statement[R]{kind: kindTruncate})
}

// Resume goes on with the statement that was blocked, and returns what it does. It fails with [ErrBlocked]
// if it must still wait, perhaps for the next thing.
func (t *Tx[R]) Resume() (int, error) {
	s := t.waits
	if s == nil || t.ended {
		return 0, ErrEnded
	}
	t.waits = nil
	return t.run(s)
}

// Invalidate writes the scopes into the log, each once, as freshet.invalidate and its like do.
func (t *Tx[R]) Invalidate(scopes ...coherence.Scope) error {
	if err := t.usable(); err != nil {
		return err
	}
	var set scopeSet
	for _, scope := range scopes {
		set.add(scope)
	}
	t.logs(set)
	return nil
}

// Grace is that of what changes from here on, as freshet.grace sets it; 0 = none.
func (t *Tx[R]) Grace(d time.Duration) error {
	if err := t.usable(); err != nil {
		return err
	}
	t.grace = d
	return nil
}

// Savepoint marks the present state.
func (t *Tx[R]) Savepoint() error {
	if err := t.usable(); err != nil {
		return err
	}
	t.points = append(t.points, savepoint{changes: len(t.changes), log: len(t.log), used: t.used, grace: t.grace})
	return nil
}

// Release forgets the innermost savepoint and keeps what was done since.
func (t *Tx[R]) Release() error {
	if err := t.usable(); err != nil {
		return err
	}
	if len(t.points) == 0 {
		return t.fail(ErrNoSavepoint)
	}
	last := len(t.points) - 1
	t.highest = max(t.highest, t.points[last].highest) // the points around it have it already
	t.points = t.points[:last]
	return nil
}

// RollbackTo goes back to the innermost savepoint, which stays: rows and log are as they were then, and
// the rows' locks since then are free. It is how a failed transaction goes on.
func (t *Tx[R]) RollbackTo() error {
	switch {
	case t.ended:
		return ErrEnded
	case t.waits != nil:
		return ErrBlocked
	case len(t.points) == 0 && t.failed:
		return ErrNoSavepoint
	case len(t.points) == 0:
		return t.fail(ErrNoSavepoint)
	}
	t.failed = false
	t.undoPoint()
	return nil
}

// Cancel ends the statement that waits, as a timeout does. The transaction has failed.
func (t *Tx[R]) Cancel() {
	if !t.ended && t.waits != nil {
		_ = t.fail(ErrFailed)
	}
}

// undoPoint ends the innermost subtransaction without its changes.
func (t *Tx[R]) undoPoint() {
	point := &t.points[len(t.points)-1]
	t.undo(point.changes)
	t.log, t.graces, t.grace = t.log[:point.log], t.graces[:point.log], point.grace
	if t.used && !point.used {
		t.unuse()
	}
	if point.highest > 0 {
		t.server.completed(point.highest)
	}
	point.xid, point.highest = 0, 0
}

// Commit ends the transaction; what it did is visible from now on. A failed one is rolled back and says
// [ErrFailed].
func (t *Tx[R]) Commit() error {
	switch {
	case t.ended:
		return ErrEnded
	case t.failed || t.waits != nil:
		t.end(false)
		return ErrFailed
	}
	had := t.xid != 0
	t.end(true)
	if had {
		t.server.durable(durable[R]{tx: t})
	}
	return nil
}

// Rollback ends the transaction without its changes, also when it waits: its connection may be lost any
// time. It does nothing after the end.
func (t *Tx[R]) Rollback() { t.end(false) }

func (t *Tx[R]) usable() error {
	switch {
	case t.ended:
		return ErrEnded
	case t.failed:
		return ErrFailed
	case t.waits != nil:
		return ErrBlocked
	}
	return nil
}

// start runs a new statement.
func (t *Tx[R]) start(s *statement[R]) (int, error) {
	if err := t.usable(); err != nil {
		return 0, err
	}
	return t.run(s)
}

// targets are the keys' rows that a statement sent now sees.
func (t *Tx[R]) targets(keys []uint64) []target[R] {
	targets := make([]target[R], 0, len(keys))
	for _, key := range keys {
		if v := t.server.visible(key, t); v != nil {
			targets = append(targets, target[R]{key, v.first})
		}
	}
	return targets
}

// run does the statement as of now, or leaves it waiting.
func (t *Tx[R]) run(s *statement[R]) (int, error) {
	if taken := t.server.truncating; s.kind == kindTruncate {
		t.draw() // before it asks for the table
	} else if !s.began && (taken == nil || taken == t) {
		s.began = true
		t.uses()
		s.targets = t.targets(s.keys)
		// An id is drawn before the server looks whether the row is locked, but not so for an upsert.
		if s.kind == kindInsert || len(s.targets) > 0 {
			t.draw()
		}
	}
	if by := t.blocker(s); by != nil {
		return 0, t.wait(s, by)
	}
	t.uses()
	n, err := t.apply(s)
	if err != nil {
		return 0, t.fail(err)
	}
	return n, nil
}

// blocker is a transaction that holds what the statement needs; nil = none.
func (t *Tx[R]) blocker(s *statement[R]) *Tx[R] {
	p := t.server
	if p.truncating != nil && p.truncating != t {
		return p.truncating
	}
	if s.kind == kindTruncate {
		for _, other := range p.users {
			if other != t {
				return other
			}
		}
		return nil
	}
	for _, row := range s.rows {
		if by := t.holder(row.Key); by != nil {
			return by
		}
	}
	for _, target := range s.targets {
		if t.latest(target) != nil {
			if by := t.holder(target.key); by != nil {
				return by
			}
		}
	}
	if s.kind == kindRekey && len(s.targets) > 0 {
		return t.holder(s.to)
	}
	return nil
}

// holder is another transaction that has changed the key's row and is open.
func (t *Tx[R]) holder(key uint64) *Tx[R] {
	versions := t.server.rows[key]
	if len(versions) == 0 {
		return nil
	}
	v := versions[len(versions)-1]
	switch {
	case !v.made.ended && v.made != t:
		return v.made
	case v.ended != nil && !v.ended.ended && v.ended != t:
		return v.ended
	}
	return nil
}

// latest is the newest version of the target's row, whoever made it; nil = the row is gone, whatever else
// has its key.
func (t *Tx[R]) latest(target target[R]) *version[R] {
	for _, v := range slices.Backward(t.server.rows[target.key]) {
		if v.first == target.row {
			if v.ended != nil && (v.ended == t || v.ended.committed) {
				return nil
			}
			return v
		}
	}
	return nil
}

func (t *Tx[R]) wait(s *statement[R], by *Tx[R]) error {
	for other := by; other != nil; other = other.Waits() {
		if other == t {
			return t.fail(ErrDeadlock)
		}
	}
	t.waits = s
	return ErrBlocked
}

// apply does the statement; nothing that it needs is locked.
func (t *Tx[R]) apply(s *statement[R]) (int, error) {
	p := t.server
	n := 0
	var inserted, updated scopeSet
	switch s.kind {
	case kindInsert, kindUpsert:
		for _, row := range s.rows {
			there := p.visible(row.Key, t)
			if there != nil && s.kind == kindInsert {
				return 0, ErrDuplicate
			}
			n++
			if there == nil {
				t.make(row.Key, row.Value, nil, nil)
				t.mention(&inserted, row.Key, row.Value)
				continue
			}
			value := row.Value
			if s.set != nil {
				value = s.set(row.Key, there.value)
			}
			t.replace(&updated, row.Key, there, value)
		}
	case kindUpdate, kindDelete, kindRekey:
		for _, target := range s.targets {
			v := t.latest(target)
			if v == nil {
				continue
			}
			n++
			switch s.kind {
			case kindUpdate:
				t.replace(&updated, target.key, v, s.set(target.key, v.value))
			case kindRekey:
				if s.to != target.key && p.visible(s.to, t) != nil {
					return 0, ErrDuplicate
				}
				t.mention(&updated, target.key, v.value)
				t.mention(&updated, s.to, v.value)
				t.finish(target.key, v)
				t.make(s.to, v.value, v.first, nil)
			default:
				t.mention(&updated, target.key, v.value)
				t.finish(target.key, v)
			}
		}
	case kindTruncate:
		t.changes = append(t.changes, change[R]{truncates: p.truncating == nil})
		p.truncating = t
		for _, key := range p.keys {
			if v := p.visible(key, t); v != nil {
				t.finish(key, v)
			}
		}
		if p.watch.Namespace != "" {
			updated.add(coherence.Namespace(p.watch.Namespace))
			for _, tag := range p.watch.Fixed {
				updated.add(coherence.Tag(tag))
			}
			if p.watch.Tags != nil {
				updated.add(coherence.Everything())
			}
		}
	}
	t.logs(t.atMost(inserted))
	t.logs(t.atMost(updated))
	return n, nil
}

// make adds a version of a row: of the one that has begun with first, and after the one it replaces.
func (t *Tx[R]) make(key uint64, value R, first, replaces *version[R]) {
	p := t.server
	t.write()
	v := &version[R]{value: value, first: first, made: t}
	if first == nil {
		v.first = v
	}
	if p.rows[key] == nil {
		i, _ := slices.BinarySearch(p.keys, key)
		p.keys = slices.Insert(p.keys, i, key)
	}
	p.rows[key] = append(p.rows[key], v)
	t.changes = append(t.changes, change[R]{key: key, made: v, ended: replaces})
}

// finish ends a version without another one.
func (t *Tx[R]) finish(key uint64, v *version[R]) {
	t.write()
	v.ended = t
	t.changes = append(t.changes, change[R]{key: key, ended: v})
}

func (t *Tx[R]) replace(log *scopeSet, key uint64, v *version[R], value R) {
	t.mention(log, key, v.value)
	t.mention(log, key, value)
	v.ended = t
	t.make(key, value, v.first, v)
}

// mention adds to a statement's scopes those of a state of a row.
func (t *Tx[R]) mention(set *scopeSet, key uint64, row R) {
	w := t.server.watch
	if w.Namespace == "" {
		return
	}
	set.add(coherence.Entity(w.Namespace, strconv.FormatUint(key, 10)))
	for _, tag := range w.Fixed {
		set.add(coherence.Tag(tag))
	}
	if w.Tags != nil {
		for _, tag := range w.Tags(key, row) {
			set.add(coherence.Tag(tag))
		}
	}
}

// atMost puts the namespace in place of too many entities, and everything in place of too many tags.
func (t *Tx[R]) atMost(set scopeSet) scopeSet {
	entities, tags := 0, 0
	for _, scope := range set.list {
		switch scope.Kind {
		case coherence.KindEntity:
			entities++
		case coherence.KindTag:
			tags++
		default:
		}
	}
	if entities > watchLimit {
		set = set.without(coherence.KindEntity, coherence.Namespace(t.server.watch.Namespace))
	}
	if tags > watchLimit {
		set = set.without(coherence.KindTag, coherence.Everything())
	}
	return set
}

// logs writes the scopes into the transaction's part of the log.
func (t *Tx[R]) logs(set scopeSet) {
	if len(set.list) > 0 {
		t.write()
		t.log = append(t.log, set.list...)
		t.graces = append(t.graces, slices.Repeat([]time.Duration{t.grace}, len(set.list))...)
	}
}

// write notes that the transaction has written into the write-ahead log.
func (t *Tx[R]) write() {
	t.draw()
	highest := t.xid
	for _, point := range t.points {
		highest = max(highest, point.xid)
	}
	t.server.written = max(t.server.written, highest+1)
}

// draw gives the transaction the ids that it needs to write: its own, and one for each savepoint since.
func (t *Tx[R]) draw() {
	p := t.server
	if t.xid == 0 {
		t.xid = p.next
		p.next++
		p.open = append(p.open, t)
	}
	for i := range t.points {
		if t.points[i].xid != 0 {
			continue
		}
		t.points[i].xid = p.next
		p.next++
		for j := range i + 1 {
			t.points[j].highest = t.points[i].xid
		}
	}
}

// completed says that a transaction or subtransaction has ended.
func (p *Postgres[R]) completed(xid uint64) {
	p.xmax = max(p.xmax, xid+1)
	p.known = false
}

// uses notes that the transaction stands in the way of a TRUNCATE.
func (t *Tx[R]) uses() {
	if !t.used {
		t.used = true
		t.server.users = append(t.server.users, t)
	}
}

func (t *Tx[R]) unuse() {
	t.used = false
	if i := slices.Index(t.server.users, t); i >= 0 {
		t.server.users = slices.Delete(t.server.users, i, i+1)
	}
}

// fail ends the innermost subtransaction, or else the transaction, at once; the caller must go back.
func (t *Tx[R]) fail(err error) error {
	if len(t.points) > 0 {
		t.undoPoint()
	} else {
		t.end(false)
		t.ended = false
	}
	t.failed, t.waits = true, nil
	return err
}

// undo takes back the changes behind the first n.
func (t *Tx[R]) undo(n int) {
	p := t.server
	for _, c := range slices.Backward(t.changes[n:]) {
		if c.made != nil {
			versions := p.rows[c.key]
			p.rows[c.key] = versions[:len(versions)-1]
		}
		if c.ended != nil {
			c.ended.ended = nil
		}
		if c.truncates {
			p.truncating = nil
		}
	}
	t.changes = t.changes[:n]
}

// end ends the transaction, well or not.
func (t *Tx[R]) end(well bool) {
	if t.ended {
		return
	}
	p := t.server
	t.ended, t.waits = true, nil
	if t.used {
		t.unuse()
	}
	for _, point := range t.points {
		t.highest = max(t.highest, point.highest)
	}
	t.points = nil
	if !well {
		t.undo(0)
		t.log = nil
	}
	if p.truncating == t {
		p.truncating = nil
		t.emptied()
	}
	if t.xid == 0 {
		return
	}
	if i, open := slices.BinarySearchFunc(p.open, t.xid, func(o *Tx[R], xid uint64) int { return cmp.Compare(o.xid, xid) }); open {
		p.open = slices.Delete(p.open, i, i+1)
		p.completed(max(t.xid, t.highest))
	}
	if !well {
		return
	}
	t.committed = true
	changes := make([]coherence.Change, len(t.log))
	for i, scope := range t.log {
		changes[i] = coherence.Change{XID: t.xid, Scope: scope.Hash(), Grace: t.graces[i]}
	}
	p.log = slices.Insert(p.log, p.logFrom(t.xid+1), changes...)
}

// emptied takes what a TRUNCATE removed from every snapshot.
func (t *Tx[R]) emptied() {
	for _, versions := range t.server.rows {
		for _, v := range versions {
			if v.ended != nil {
				v.gone = true
			}
		}
	}
}

// scopeSet is the scopes of one statement, each once.
type scopeSet struct {
	list []coherence.Scope
	have map[coherence.Scope]struct{} // of list, once it is long
}

// manyScopes are too many to search.
const manyScopes = 16

func (s *scopeSet) add(scope coherence.Scope) {
	if s.have == nil && len(s.list) < manyScopes {
		if !slices.Contains(s.list, scope) {
			s.list = append(s.list, scope)
		}
		return
	}
	if s.have == nil {
		s.have = make(map[coherence.Scope]struct{}, 2*manyScopes)
		for _, scope := range s.list {
			s.have[scope] = struct{}{}
		}
	}
	if _, ok := s.have[scope]; !ok {
		s.have[scope] = struct{}{}
		s.list = append(s.list, scope)
	}
}

// without is the set with one scope in place of all of a kind.
func (s scopeSet) without(kind coherence.Kind, instead coherence.Scope) scopeSet {
	list := slices.DeleteFunc(s.list, func(scope coherence.Scope) bool { return scope.Kind == kind })
	return scopeSet{list: append(list, instead)}
}
