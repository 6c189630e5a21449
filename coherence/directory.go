package coherence

import "slices"

// Poll is a successful poll as the node remembers it.
type Poll struct {
	Snapshot
	// Sent is when the poll was sent, on the clock of the [Tracker].
	Sent Instant
	// number counts polls; of two polls of one directory the higher number has the newer snapshot.
	number uint64
	// heard is how many hints and own writes the directory had been given when the poll was sent: it
	// sees all of those that had committed.
	heard uint64
}

// Before reports whether p is an earlier poll of the same tracker than q.
func (p *Poll) Before(q *Poll) bool { return p.number < q.number }

const (
	ways = 8 // scopes per set
	keep = 3 // changes of one scope between two polls that are told apart
	// maxNotes bounds the notes of one poll interval.
	maxNotes = 1 << 14
)

// DefaultScopes is how many scopes a [Directory] tells apart unless told otherwise; it takes 64 bytes
// for each.
const DefaultScopes = 1 << 16

// Directory remembers, for the scopes that changed last, which snapshots know their changes. Like the
// directory of a CPU's caches it is set-associative and of fixed size: what it must forget it
// replaces by a floor, below which snapshots are refused. Forgetting costs loads, never correctness.
//
// It is not safe for concurrent use; the [Tracker] guards it. The zero Directory is not usable.
type Directory struct {
	mask uint64
	sets []set
	// floor: snapshots that do not include it are refused for every scope. It is the log's horizon
	// when the node started, or when it may have missed something. The zero floor is of no timeline:
	// no snapshot includes it.
	floor Snapshot

	// latest is the last poll; nil = none since the last reset.
	latest *Poll
	polls  uint64
	heard  uint64
	// now is when the event that is told of came, and flushed when the floor was set. Both serve explanations;
	// they decide nothing. 0 = nobody has said.
	now, flushed Instant
	// learned is how many changes the last poll brought that nothing had told of before.
	learned int
	// unsettled are the cells with a change that no poll has seen yet, each once; blocked counts the
	// sets whose blockedAt is set.
	unsettled []*cell
	blocked   int

	// graced: scope -> changes in their grace, in the order in which they became known, each once. They are
	// not in the cells yet.
	graced      map[ScopeHash][]graced
	gracedCount int

	// notes: value -> the newest snapshot served for it, when that is newer than the latest poll.
	// Those of the interval before are kept until a poll that was sent after them has come back.
	notes, oldNotes map[ScopeHash]Snapshot
	// noteFloor stands in for notes that found no room.
	noteFloor, oldNoteFloor Snapshot
}

// set is the cells of the scopes that share some bits of their hash.
type set struct {
	cells [ways]cell
	// floor stands in for the cells that this set had to drop; nil = none.
	floor *Poll
	// blockedAt: a cell was dropped that no poll had seen: nothing in the set is valid until a poll
	// that was sent after this many were heard. 0 = not blocked.
	blockedAt uint64
}

// cell is what is known of one scope's changes: a snapshot is valid for the scope iff it sees all of
// xids and includes the floor.
type cell struct {
	scope ScopeHash
	// xids are the changes since the poll before the last change; ascending order is not kept.
	xids [keep]uint64
	n    uint8
	used bool
	// queued: the cell is in the directory's unsettled list.
	queued bool
	// learned is when the last of the changes became known, see momentOf. It decides nothing.
	learned uint32
	// blockedAt: more changes than keep came before a poll saw them; as in set.
	blockedAt uint64
	// floor sees every change that is not in xids; nil = there was none.
	floor *Poll
	// settled is the first poll that saw all of them; nil = none yet.
	settled *Poll
}

// NewDirectory makes a directory that tells at least the given number of scopes apart; 0 =
// [DefaultScopes]. It refuses every snapshot until [Directory.Reset].
func NewDirectory(scopes int) *Directory {
	if scopes <= 0 {
		scopes = DefaultScopes
	}
	n := uint64(1)
	for n*ways < uint64(scopes) {
		n <<= 1
	}
	return &Directory{
		mask: n - 1, sets: make([]set, n), graced: map[ScopeHash][]graced{},
		notes: map[ScopeHash]Snapshot{}, oldNotes: map[ScopeHash]Snapshot{},
	}
}

// Reset forgets everything, for a new timeline: from now on only snapshots of the floor's timeline that
// include the floor are valid; none when that timeline is 0.
func (d *Directory) Reset(floor Snapshot) {
	clear(d.sets)
	d.floor, d.latest, d.flushed = floor, nil, d.now
	d.unsettled, d.blocked = d.unsettled[:0], 0
	clear(d.graced)
	d.gracedCount = 0
	clear(d.notes)
	clear(d.oldNotes)
	d.noteFloor, d.oldNoteFloor = Snapshot{}, Snapshot{}
}

// Flush refuses all snapshots that do not include the floor, which is of the same timeline and not
// newer than the poll that comes next. What is known of newer changes, and the notes, are kept.
func (d *Directory) Flush(floor Snapshot) { d.floor, d.flushed = floor, d.now }

// Latest is the last poll; nil after a reset.
func (d *Directory) Latest() *Poll { return d.latest }

// Check reports whether a value read under the snapshot is valid for the scope, as far as is known.
func (d *Directory) Check(scope ScopeHash, value Snapshot) bool {
	return d.judge(scope, value) == NotRefused && !d.lacksGraced(scope, value)
}

// judge is Check but for changes in their grace; it says why not.
func (d *Directory) judge(scope ScopeHash, value Snapshot) Refusal {
	if !value.Includes(d.floor) { // or of another timeline, or of none
		return RefusedFlushed
	}
	s := &d.sets[uint64(scope)&d.mask]
	if s.blockedAt != 0 || (s.floor != nil && !value.Includes(s.floor.Snapshot)) {
		return RefusedForgotten
	}
	c := s.find(scope)
	if c == nil {
		return NotRefused
	}
	if c.blockedAt != 0 || (c.floor != nil && !value.Includes(c.floor.Snapshot)) {
		return RefusedEarlier
	}
	for _, xid := range c.xids[:c.n] {
		if !value.Sees(xid) {
			return RefusedChanged
		}
	}
	return NotRefused
}

// CheckNote reports whether the snapshot is of the directory's timeline and not behind one that was
// served for the same value.
func (d *Directory) CheckNote(value ScopeHash, snapshot Snapshot) bool {
	if !snapshot.Includes(d.floor) {
		return false
	}
	if s, ok := d.notes[value]; ok && !snapshot.Includes(s) {
		return false
	}
	if s, ok := d.oldNotes[value]; ok && !snapshot.Includes(s) {
		return false
	}
	return (d.noteFloor.Timeline == 0 || snapshot.Includes(d.noteFloor)) &&
		(d.oldNoteFloor.Timeline == 0 || snapshot.Includes(d.oldNoteFloor))
}

// Note remembers that the value was served under a snapshot newer than the latest poll, so that
// nothing older is served after it. It reports whether there was room; when not, every older value
// is refused until the next poll.
func (d *Directory) Note(value ScopeHash, snapshot Snapshot) bool {
	if d.latest != nil && d.latest.Includes(snapshot) {
		return true
	}
	if old, ok := d.notes[value]; ok {
		if snapshot.Includes(old) {
			d.notes[value] = snapshot
		}
		return true
	}
	if len(d.notes) >= maxNotes {
		if d.noteFloor.Timeline == 0 || snapshot.Includes(d.noteFloor) {
			d.noteFloor = snapshot
		}
		return false
	}
	d.notes[value] = snapshot
	return true
}

// Sent says that a poll is on its way and returns the mark that [Directory.Polled] wants with it.
func (d *Directory) Sent() (mark uint64) {
	// Notes of the interval before last are gone by now unless a poll failed: then keep them all.
	if len(d.oldNotes) == 0 && d.oldNoteFloor.Timeline == 0 {
		d.notes, d.oldNotes = d.oldNotes, d.notes
		d.noteFloor, d.oldNoteFloor = Snapshot{}, d.noteFloor
	}
	return d.heard
}

// noted reports whether the poll's snapshot includes those of all notes that were made before the poll
// was sent, as it must within one history of Postgres.
func (d *Directory) noted(poll Snapshot) bool {
	for _, note := range d.oldNotes {
		if !poll.Includes(note) {
			return false
		}
	}
	return d.oldNoteFloor.Timeline == 0 || poll.Includes(d.oldNoteFloor)
}

// Raise records a change that was heard of before a poll saw it, by a hint or by an own write. It
// reports whether that was news.
func (d *Directory) Raise(scope ScopeHash, xid uint64) bool {
	if d.latest != nil && d.latest.Sees(xid) {
		return false // the poll brought it
	}
	d.heard++
	c := d.cell(scope, nil)
	if c == nil {
		return true
	}
	if !d.add(c, xid, nil) {
		return false
	}
	c.settled = nil
	d.queue(c)
	return true
}

// queue puts the cell among those that wait for a poll.
func (d *Directory) queue(c *cell) {
	if !c.queued {
		c.queued = true
		d.unsettled = append(d.unsettled, c)
	}
}

// Polled records the changes that a poll brought, sent at the given mark, and makes it the latest.
func (d *Directory) Polled(snapshot Snapshot, sent Instant, mark uint64, changes []Change) *Poll {
	d.polls++
	poll := &Poll{Snapshot: snapshot, Sent: sent, number: d.polls, heard: mark}
	if d.latest != nil && d.latest.Equal(snapshot) {
		poll.Xip = d.latest.Xip
	}
	d.learned = 0
	for _, change := range changes {
		// It had not been committed when the poll before was sent.
		if change.Grace > 0 && d.latest != nil && d.allow(change.Scope, change.XID, d.latest.Sent, change.Grace, sent) {
			continue
		}
		if c := d.cell(change.Scope, poll); c != nil {
			if d.add(c, change.XID, poll) {
				d.learned++
			}
			if c.seenBy(poll) {
				c.settled = poll
			} else {
				d.queue(c)
			}
		}
	}
	d.settle(poll)
	d.latest = poll
	d.lapse(sent)
	clear(d.oldNotes)
	d.oldNoteFloor = Snapshot{}
	return poll
}

// settle looks again at the cells and sets that waited for a poll. What was heard before the poll was
// sent had committed before: the poll sees it, or it will come as a row of a later one.
func (d *Directory) settle(poll *Poll) {
	waiting := d.unsettled[:0]
	for _, c := range d.unsettled {
		if c.blockedAt != 0 && c.blockedAt <= poll.heard {
			c.blockedAt, c.n, c.floor = 0, 0, poll
		}
		if c.seenBy(poll) {
			c.settled, c.queued = poll, false
		} else {
			c.settled = nil
			waiting = append(waiting, c)
		}
	}
	clear(d.unsettled[len(waiting):])
	d.unsettled = waiting
	if d.blocked == 0 {
		return
	}
	for i := range d.sets {
		if s := &d.sets[i]; s.blockedAt != 0 && s.blockedAt <= poll.heard {
			s.blockedAt, s.floor = 0, poll
			d.blocked--
		}
	}
}

// cell returns the scope's cell, making room for it if need be. It returns nil when the set's floor or
// block stands for the change instead. by is the poll that brings the change, nil for none.
func (d *Directory) cell(scope ScopeHash, by *Poll) *cell {
	s := &d.sets[uint64(scope)&d.mask]
	if c := s.find(scope); c != nil {
		return c
	}
	var room *cell
	for i := range s.cells {
		c := &s.cells[i]
		if !c.used {
			room = c
			break
		}
		if c.settled != nil && (room == nil || c.settled.number < room.settled.number) {
			room = c
		}
	}
	switch {
	case room != nil:
		if room.used && (s.floor == nil || s.floor.number < room.settled.number) {
			s.floor = room.settled
		}
		*room = cell{scope: scope, used: true, queued: room.queued}
		return room
	case by != nil:
		s.floor = by
	default:
		if s.blockedAt == 0 {
			d.blocked++
		}
		s.blockedAt = d.heard
	}
	return nil
}

// add puts a change into the cell and reports whether it was not there yet.
func (d *Directory) add(c *cell, xid uint64, by *Poll) bool {
	if c.floor != nil && c.floor.Sees(xid) {
		return false
	}
	if slices.Contains(c.xids[:c.n], xid) {
		return false
	}
	c.learned = momentOf(d.now)
	if c.blockedAt != 0 {
		if by == nil {
			c.blockedAt = d.heard
		}
		return true
	}
	// What the latest poll sees moves below the floor. That makes nothing invalid: the new change is
	// not visible to that poll, so a snapshot that sees the change includes the poll's.
	if d.latest != nil {
		c.sink(d.latest)
	}
	if c.n == keep && by != nil {
		c.sink(by)
		c.floor = by
		return true
	}
	if c.n == keep {
		c.n, c.blockedAt = 0, d.heard
		return true
	}
	c.xids[c.n] = xid
	c.n++
	return true
}

// sink replaces the changes that the poll sees by the poll as the floor.
func (c *cell) sink(poll *Poll) {
	left := c.xids[:0]
	for _, xid := range c.xids[:c.n] {
		if !poll.Sees(xid) {
			left = append(left, xid)
		}
	}
	if len(left) < int(c.n) {
		c.n, c.floor = uint8(len(left)), poll
	}
}

// seenBy reports whether the poll sees every change of the cell.
func (c *cell) seenBy(poll *Poll) bool {
	if c.blockedAt != 0 {
		return false
	}
	for _, xid := range c.xids[:c.n] {
		if !poll.Sees(xid) {
			return false
		}
	}
	return true
}

func (s *set) find(scope ScopeHash) *cell {
	for i := range s.cells {
		if c := &s.cells[i]; c.used && c.scope == scope {
			return c
		}
	}
	return nil
}
