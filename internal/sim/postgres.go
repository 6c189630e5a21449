package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// row is the state of one key.
type row struct {
	op     uint64 // the write that made it; of a row that is not there, the one that deleted it
	group  int    // 0 = the row is not there
	detail uint64 // the write of what only the detail view shows
}

// change is what one transaction did to one key.
type change struct {
	key int
	to  row
}

// commit is one committed transaction.
type commit struct {
	xid     uint64
	changes []change
	log     []coherence.Change
}

// postgres models one Postgres primary: transactions get ids at their first write and finish in any
// order, a statement sees what has committed by then, a row is locked from its change to the end of
// the transaction, and freshet's log, horizon and timeline stand beside the rows.
type postgres struct {
	timeline  uint64 // 0 = none has begun since the crash
	timelines uint64
	epoch     int      // of the process: connections of an earlier one are broken
	next      uint64   // the id of the next transaction
	xmax      uint64   // one past the highest finished transaction
	open      []uint64 // ids in progress, ascending
	rows      []row    // by key; 0 is not used
	locks     map[int]*transaction

	log               []coherence.Change
	horizon, upcoming coherence.Snapshot
	turned            time.Duration
	// commits since the start, for a standby to lack the last of them.
	commits []commit
}

const firstXID = 700

func newPostgres(keys int) *postgres {
	p := &postgres{timeline: 1, timelines: 1, next: firstXID, xmax: firstXID, rows: make([]row, keys+1), locks: map[int]*transaction{}}
	p.horizon = p.snapshot()
	p.upcoming = p.horizon
	return p
}

func (p *postgres) snapshot() coherence.Snapshot {
	s := coherence.Snapshot{Timeline: p.timeline, Xmin: p.xmax, Xmax: p.xmax}
	for _, xid := range p.open {
		if xid < p.xmax {
			s.Xip = append(s.Xip, xid)
		}
	}
	if len(p.open) > 0 {
		s.Xmin = min(s.Xmin, p.open[0])
	}
	return s
}

// poll is the query of [coherence.PostgresLog].
func (p *postgres) poll(since coherence.Snapshot, limit int) coherence.PollResult {
	r := coherence.PollResult{Snapshot: p.snapshot(), Horizon: p.horizon}
	r.Horizon.Timeline = p.timeline
	for _, row := range p.log {
		if row.XID >= p.xmax || (row.XID < since.Xmax && !slices.Contains(since.Xip, row.XID)) {
			continue
		}
		if len(r.Changes) == limit {
			r.Overrun, r.Changes = true, nil
			break
		}
		r.Changes = append(r.Changes, row)
	}
	return r
}

// begin is freshet.begin_timeline.
func (p *postgres) begin(broken uint64) {
	if p.timeline != 0 && p.timeline != broken {
		return
	}
	p.timelines++
	p.timeline = p.timelines
	p.horizon = p.snapshot()
	p.upcoming = p.horizon
}

// trim is freshet.trim.
func (p *postgres) trim(now, keep time.Duration) int {
	if now-p.turned > keep {
		p.horizon, p.upcoming, p.turned = p.upcoming, p.snapshot(), now
	}
	upto := p.horizon
	upto.Timeline = 1 // its numbers are of this server
	before := len(p.log)
	p.log = slices.DeleteFunc(p.log, func(c coherence.Change) bool { return upto.Sees(c.XID) || c.XID >= p.xmax })
	return before - len(p.log)
}

// crash restarts the server: transactions in progress are gone, and their ids come again.
func (p *postgres) crash() {
	p.epoch++
	p.timeline = 0
	p.open, p.next = nil, p.xmax
	p.locks = map[int]*transaction{}
}

// failover goes on with a standby that lacks the last n commits. It returns the lost ones.
func (p *postgres) failover(n int) []commit {
	n = min(n, len(p.commits))
	kept, lost := p.commits[:len(p.commits)-n], slices.Clone(p.commits[len(p.commits)-n:])
	p.crash()
	if n == 0 {
		return nil
	}
	// What a trim deleted behind the lost commits comes back, too: the horizon does not, which only
	// makes the log richer than it must be.
	p.commits = kept
	p.rows = make([]row, len(p.rows))
	p.log = nil
	p.xmax = firstXID
	for _, c := range kept {
		p.apply(c)
	}
	p.next = p.xmax
	return lost
}

func (p *postgres) apply(c commit) {
	p.xmax = max(p.xmax, c.xid+1)
	for _, change := range c.changes {
		p.rows[change.key] = change.to
	}
	p.log = append(p.log, c.log...)
}

var (
	errGone    = errors.New("the connection is gone")
	errBlocked = errors.New("another transaction holds the row")
)

// transaction is one writer's.
type transaction struct {
	postgres *postgres
	epoch    int
	ended    bool
	xid      uint64 // 0 = it has written nothing
	changes  []change
	log      []coherence.Scope
	saved    []int // lengths of changes and log at the savepoint
}

func (p *postgres) transaction() *transaction { return &transaction{postgres: p, epoch: p.epoch} }

func (t *transaction) usable() error {
	if t.ended || t.epoch != t.postgres.epoch {
		return errGone
	}
	return nil
}

// lock takes the rows' locks; errBlocked says that one must be waited for.
func (t *transaction) lock(keys ...int) error {
	if err := t.usable(); err != nil {
		return err
	}
	p := t.postgres
	for _, key := range keys {
		if holder := p.locks[key]; holder != nil && holder != t {
			return errBlocked
		}
	}
	for _, key := range keys {
		p.locks[key] = t
	}
	if t.xid == 0 {
		t.xid = p.next
		p.next++
		p.open = append(p.open, t.xid)
	}
	return nil
}

// row is the key's row as the transaction sees it.
func (t *transaction) row(key int) row {
	for _, c := range slices.Backward(t.changes) {
		if c.key == key {
			return c.to
		}
	}
	return t.postgres.rows[key]
}

func (t *transaction) set(key int, to row) {
	t.changes = append(t.changes, change{key, to})
}

func (t *transaction) changed(scopes ...coherence.Scope) { t.log = append(t.log, scopes...) }

func (t *transaction) savepoint() { t.saved = []int{len(t.changes), len(t.log)} }

// rollbackTo keeps the row's locks, as Postgres may.
func (t *transaction) rollbackTo() {
	t.changes, t.log = t.changes[:t.saved[0]], t.log[:t.saved[1]]
}

// commit ends the transaction; what it did is visible from now on.
func (t *transaction) commit() error {
	if err := t.usable(); err != nil {
		return err
	}
	if t.xid == 0 {
		return nil
	}
	c := commit{xid: t.xid, changes: t.changes}
	for _, scope := range t.log {
		c.log = append(c.log, coherence.Change{XID: t.xid, Scope: scope.Hash()})
	}
	t.end()
	t.postgres.apply(c)
	t.postgres.commits = append(t.postgres.commits, c)
	return nil
}

// rollback ends the transaction without its changes.
func (t *transaction) rollback() {
	if t.usable() != nil {
		return
	}
	t.end()
	if t.xid != 0 {
		t.postgres.xmax = max(t.postgres.xmax, t.xid+1)
	}
}

func (t *transaction) end() {
	t.ended = true
	p := t.postgres
	if i, ok := slices.BinarySearch(p.open, t.xid); ok {
		p.open = slices.Delete(p.open, i, i+1)
	}
	for key, holder := range p.locks {
		if holder == t {
			delete(p.locks, key)
		}
	}
}
