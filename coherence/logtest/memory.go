package logtest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/coherence"
)

// firstXID is where the transaction ids of a new Memory begin, as in a young Postgres.
const firstXID = 700

// Memory is a log in memory. It models one Postgres primary: transactions get ids as they begin,
// finish in any order, and every snapshot is a prefix of the order in which they finished. It is safe
// for concurrent use.
type Memory struct {
	mu       sync.Mutex
	timeline uint64
	next     uint64   // the id of the next transaction
	xmax     uint64   // one past the highest finished transaction
	open     []uint64 // ids in progress, ascending
	rows     []coherence.Change
	horizon  coherence.Snapshot
	upcoming coherence.Snapshot // becomes the horizon
	turned   time.Time          // when it was taken
	closed   bool

	numbers     map[string]uint32 // namespace, "" for all -> its generation
	generations *coherence.Generations
	changed     int // times that numbers has changed

	polls   int
	fault   error
	latency time.Duration
}

// NewMemory makes an empty log in timeline 1.
func NewMemory() *Memory {
	m := &Memory{timeline: 1, next: firstXID, xmax: firstXID, turned: time.Now(), numbers: map[string]uint32{}}
	m.generations = coherence.NewGenerations("0", m.numbers)
	m.horizon = m.snapshot()
	m.upcoming = m.horizon
	return m
}

// Begin starts a transaction.
func (m *Memory) Begin() *Tx {
	m.mu.Lock()
	defer m.mu.Unlock()
	tx := &Tx{log: m, xid: m.next, timeline: m.timeline}
	m.next++
	m.open = append(m.open, tx.xid)
	return tx
}

// Commit changes the scopes in a transaction of their own and returns its id.
func (m *Memory) Commit(scopes ...coherence.Scope) (xid uint64) {
	tx := m.Begin()
	tx.Change(scopes...)
	tx.Commit()
	return tx.xid
}

// SetGeneration gives the namespace, "" for all, a generation in a transaction of its own and returns its id.
func (m *Memory) SetGeneration(namespace string, generation uint32) (xid uint64) {
	tx := m.Begin()
	tx.SetGeneration(namespace, generation)
	tx.Commit()
	return tx.xid
}

// Snapshot is what a statement sent now would see.
func (m *Memory) Snapshot() coherence.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snapshot()
}

func (m *Memory) snapshot() coherence.Snapshot {
	s := coherence.Snapshot{Timeline: m.timeline, Xmin: m.xmax, Xmax: m.xmax}
	for _, xid := range m.open {
		if xid < s.Xmax {
			s.Xip = append(s.Xip, xid)
		}
	}
	if len(m.open) > 0 {
		s.Xmin = min(s.Xmin, m.open[0])
	}
	return s
}

// Crash ends the timeline like a crash of the server: transactions in progress are rolled back and
// their ids, if they were the last, are given again.
func (m *Memory) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.timeline++
	m.open, m.next = nil, m.xmax
	m.horizon = m.snapshot()
	m.upcoming = m.horizon
}

// Fail makes every call fail with the error until it is called with nil.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = err
}

// Delay makes every poll take so long after it has looked.
func (m *Memory) Delay(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latency = d
}

// Polls is how many polls were sent, also those that failed.
func (m *Memory) Polls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.polls
}

var errClosed = errors.New("logtest: the log is closed")

func (m *Memory) usable() error {
	if m.closed {
		return errClosed
	}
	return m.fault
}

// Poll implements [coherence.Log].
func (m *Memory) Poll(ctx context.Context, since coherence.Snapshot, limit int) (coherence.PollResult, error) {
	r, latency, err := m.poll(since, limit)
	if latency > 0 {
		wait := time.NewTimer(latency)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
			return coherence.PollResult{}, context.Cause(ctx)
		}
	}
	return r, err
}

func (m *Memory) poll(since coherence.Snapshot, limit int) (coherence.PollResult, time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.polls++
	if err := m.usable(); err != nil {
		return coherence.PollResult{}, m.latency, err
	}
	r := coherence.PollResult{Snapshot: m.snapshot(), Horizon: m.horizon, Generations: m.generations}
	for _, row := range m.rows {
		// The ids mean what they do in Postgres' query, also when the timeline is another.
		if row.XID < since.Xmax && !slices.Contains(since.Xip, row.XID) {
			continue
		}
		if len(r.Changes) == limit {
			r.Overrun, r.Changes = true, nil
			break
		}
		r.Changes = append(r.Changes, row)
	}
	return r, m.latency, nil
}

// Renew implements [coherence.Log].
func (m *Memory) Renew(_ context.Context, broken uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return err
	}
	if m.timeline == broken {
		m.timeline++
		m.horizon = m.snapshot()
		m.upcoming = m.horizon
	}
	return nil
}

// Trim implements [coherence.Log].
func (m *Memory) Trim(_ context.Context, keep time.Duration) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return 0, err
	}
	if time.Since(m.turned) >= keep {
		m.horizon, m.upcoming, m.turned = m.upcoming, m.snapshot(), time.Now()
	}
	before := len(m.rows)
	m.rows = slices.DeleteFunc(m.rows, func(row coherence.Change) bool { return m.horizon.Sees(row.XID) })
	return before - len(m.rows), nil
}

// Close implements [coherence.Log].
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Tx is a transaction of a [Memory]. It is for one goroutine.
type Tx struct {
	log      *Memory
	xid      uint64
	timeline uint64
	changes  []coherence.Change
	grace    time.Duration
	numbers  map[string]uint32 // generations that it sets; nil = none
}

// XID is the transaction's id.
func (tx *Tx) XID() uint64 { return tx.xid }

// Change says that scopes change with the transaction.
func (tx *Tx) Change(scopes ...coherence.Scope) {
	for _, scope := range scopes {
		tx.changes = append(tx.changes, coherence.Change{XID: tx.xid, Scope: scope.Hash(), Grace: tx.grace})
	}
}

// Grace is that of what changes from here on; 0 = none.
func (tx *Tx) Grace(d time.Duration) { tx.grace = d }

// SetGeneration gives the namespace, "" for all, a generation with the transaction, and says so.
func (tx *Tx) SetGeneration(namespace string, generation uint32) {
	if tx.numbers == nil {
		tx.numbers = map[string]uint32{}
	}
	tx.numbers[namespace] = generation
	tx.Change(coherence.AllGenerations())
}

// Commit ends the transaction. It does nothing after a crash or when the transaction has ended.
func (tx *Tx) Commit() { tx.end(tx.changes, tx.numbers) }

// Rollback ends the transaction without its changes.
func (tx *Tx) Rollback() { tx.end(nil, nil) }

func (tx *Tx) end(changes []coherence.Change, numbers map[string]uint32) {
	m := tx.log
	m.mu.Lock()
	defer m.mu.Unlock()
	i, open := slices.BinarySearch(m.open, tx.xid)
	if !open || tx.timeline != m.timeline {
		return
	}
	m.open = slices.Delete(m.open, i, i+1)
	m.xmax = max(m.xmax, tx.xid+1)
	m.rows = append(m.rows, changes...)
	if len(numbers) > 0 {
		maps.Copy(m.numbers, numbers)
		m.changed++
		m.generations = coherence.NewGenerations(strconv.Itoa(m.changed), m.numbers)
	}
}
