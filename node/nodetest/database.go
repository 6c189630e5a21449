package nodetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/coherence/logtest"
	"github.com/freshet-cache/freshet/node"
)

// database stands for Postgres: tables, the log of their changes, generations, and what is scheduled. A statement
// sees what has committed when it runs; a transaction that changes a row waits for the one that has changed it and is
// still open.
type database struct {
	log *logtest.Memory

	mu      sync.Mutex
	tables  []relation
	locks   map[lock]*Tx // who holds what, until it ends
	crashes int          // of the server: transactions from before one are gone

	generations generations
	scheduled   []*scheduled // in the order of their commits, at most maxScheduled
}

// relation is a table, whatever its type. All is called with the database's mu held.
type relation interface {
	commit(tx *Tx)   // what the transaction has changed is the state
	forget(tx *Tx)   // it is not
	pin(at *reading) // the state of now is that of the reading
	unpin(at *reading)
}

// lock names what one transaction at a time may change.
type lock struct {
	of int // index of a table, or one of those below
	id string
}

const (
	ofGenerations = -1
	ofBatch       = -2 // id = its name
)

func newDatabase() *database {
	return &database{log: logtest.NewMemory(), locks: map[lock]*Tx{}, generations: newGenerations()}
}

// begin begins a transaction, which ends with ctx.
func (d *database) begin(ctx context.Context) *Tx {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Tx{db: d, ctx: ctx, crashes: d.crashes, ended: make(chan struct{})}
}

// crash ends the server's timeline, and rolls back what is open.
func (d *database) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashes++
	d.log.Crash()
	for _, tx := range d.locks {
		tx.end()
	}
}

// close rolls back what is open.
func (d *database) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, tx := range d.locks {
		tx.end()
	}
}

// reading is a transaction that only reads, all under one snapshot. It implements [tiers.Transaction].
type reading struct {
	db       *database
	snapshot coherence.Snapshot
	ended    func()
	once     sync.Once
}

// beginRead begins one. ended is called once, when it has ended.
func (d *database) beginRead(ended func()) *reading {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := &reading{db: d, snapshot: d.log.Snapshot(), ended: ended}
	for _, t := range d.tables {
		t.pin(at)
	}
	return at
}

// End implements [tiers.Transaction].
func (r *reading) End() {
	r.once.Do(func() {
		r.db.mu.Lock()
		for _, t := range r.db.tables {
			t.unpin(r)
		}
		r.db.mu.Unlock()
		r.ended()
	})
}

// Tx is an open transaction of a [Cluster]'s database, from [Cluster.Begin] or [TxOf]. What it changes is seen, and
// in the log, from its commit on. Others that change the same rows wait for its end; after 5 s they fail. It is for one
// goroutine.
type Tx struct {
	db      *database
	ctx     context.Context //nolint:containedctx // a transaction ends with its context
	crashes int             // of the server when it began
	ended   chan struct{}   // closed by end

	// Under the database's mu.
	log       *logtest.Tx // nil = it has written nothing
	over      bool
	relations []relation // in which it has changed something
	locks     []lock
	grace     time.Duration
	written   node.Written
	many      int // scopes in written

	generations *generations // as they will be; nil = as they are
	scheduled   []*scheduled // to be added
	run         []*scheduled // of the database's, to be removed
}

// lockWait is how long a transaction waits for another that holds what it wants.
const lockWait = 5 * time.Second

var (
	errEnded   = errors.New("nodetest: the transaction has ended")
	errCrashed = errors.New("nodetest: the server crashed, or the connection was lost, before the commit")
	errNobody  = errors.New("nodetest: the transaction is nil: want one of the cluster's")
)

// usable says why the transaction is not. The caller holds the database's mu.
func (tx *Tx) usable() error {
	switch {
	case tx.crashes != tx.db.crashes:
		return errCrashed
	case tx.over:
		return errEnded
	}
	return nil
}

// acquire waits until the transaction holds the lock.
func (tx *Tx) acquire(l lock) error {
	timer := time.NewTimer(lockWait)
	defer timer.Stop()
	for {
		holder, err := tx.tryAcquire(l)
		if err != nil || holder == nil {
			return err
		}
		select {
		case <-holder.ended:
		case <-tx.ended:
		case <-tx.ctx.Done():
			return context.Cause(tx.ctx)
		case <-timer.C:
			return fmt.Errorf("nodetest: another transaction has changed it and is open: no end within %v", lockWait)
		}
	}
}

// tryAcquire returns the other that holds the lock, or nil when this one does.
func (tx *Tx) tryAcquire(l lock) (holder *Tx, err error) {
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	if err := tx.usable(); err != nil {
		return nil, err
	}
	switch holder := tx.db.locks[l]; holder {
	case tx:
		return nil, nil
	case nil:
		tx.db.locks[l] = tx
		tx.locks = append(tx.locks, l)
		tx.write()
		return nil, nil
	default:
		return holder, nil
	}
}

// write gives the transaction its id. The caller holds the database's mu.
func (tx *Tx) write() {
	if tx.log != nil {
		return
	}
	tx.log = tx.db.log.Begin()
	tx.written.Timeline, tx.written.XID = tx.db.log.Snapshot().Timeline, tx.log.XID()
}

// maxScopes bounds the scopes that a transaction reads back of itself, as in Postgres.
const maxScopes = 5000

// change logs scopes with a grace; below 0 = that of the transaction. The caller holds the database's mu.
func (tx *Tx) change(grace time.Duration, scopes ...coherence.Scope) {
	tx.write()
	if grace < 0 {
		grace = tx.grace
	}
	tx.log.Grace(grace)
	tx.log.Change(scopes...)
	for _, scope := range scopes {
		tx.many++
		switch {
		case tx.many > maxScopes:
			tx.written.Many = true
		case grace == 0 || scope.Kind == coherence.KindGenerations:
			tx.written.Scopes = append(tx.written.Scopes, scope)
		default:
			if tx.written.Graced == nil {
				tx.written.Graced = map[time.Duration][]coherence.Scope{}
			}
			tx.written.Graced[grace] = append(tx.written.Graced[grace], scope)
		}
	}
}

// Invalidate says that the entities change with the transaction, as freshet.invalidate does in SQL.
func (tx *Tx) Invalidate(namespace string, ids ...string) error {
	return tx.invalidate(node.Invalidation{Kind: coherence.KindEntity, Namespace: namespace, IDs: ids})
}

// InvalidateView says that one view of the entity changes, as freshet.invalidate_view does in SQL.
func (tx *Tx) InvalidateView(namespace, id, view string) error {
	return tx.invalidate(node.Invalidation{Kind: coherence.KindView, Namespace: namespace, IDs: []string{id}, View: view})
}

// InvalidateTag says that every entry with one of the tags changes, as freshet.invalidate_tag does in SQL.
func (tx *Tx) InvalidateTag(tags ...string) error {
	return tx.invalidate(node.Invalidation{Kind: coherence.KindTag, IDs: tags})
}

// InvalidateNamespace says that every entry of the namespace changes, as freshet.invalidate_namespace does in SQL.
func (tx *Tx) InvalidateNamespace(namespace string) error {
	return tx.invalidate(node.Invalidation{Kind: coherence.KindNamespace, Namespace: namespace, IDs: []string{""}})
}

// Grace is that of all that changes with the transaction from here on, as freshet.grace does in SQL; 0 = none. At most
// [node.MaxGrace].
func (tx *Tx) Grace(d time.Duration) error {
	if tx == nil {
		return errNobody
	}
	if d < 0 || d > node.MaxGrace {
		return fmt.Errorf("nodetest: grace is %v; want 0 to %v", d, node.MaxGrace)
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	tx.grace = d.Truncate(time.Millisecond)
	return tx.usable()
}

// invalidate logs or schedules. It refuses what Postgres refuses.
func (tx *Tx) invalidate(i node.Invalidation) error {
	if tx == nil {
		return errNobody
	}
	switch {
	case i.Kind != coherence.KindTag && i.Namespace == "":
		return errors.New("nodetest: namespace is empty; want the namespace of a cache")
	case i.Kind != coherence.KindNamespace && slices.Contains(i.IDs, ""):
		return errors.New("nodetest: an id or tag is empty; want that of an entry")
	case i.Kind == coherence.KindView && i.View == "":
		return errors.New("nodetest: view is empty; want the view of a cache")
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	if err := tx.usable(); err != nil {
		return err
	}
	grace := i.Grace.Truncate(time.Millisecond)
	if grace == 0 {
		grace = tx.grace
	}
	ids := slices.Compact(slices.Sorted(slices.Values(i.IDs)))
	for _, id := range ids {
		scope := coherence.Scope{Kind: i.Kind, Namespace: i.Namespace, ID: id, View: i.View}
		if i.Delay == 0 && i.Batch == "" {
			tx.change(grace, scope)
		} else if err := tx.schedule(i, scope, grace); err != nil {
			return err
		}
	}
	return nil
}

// Commit ends the transaction, all of whose changes are seen from here on.
func (tx *Tx) Commit() error {
	_, err := tx.commit()
	return err
}

func (tx *Tx) commit() (node.Written, error) {
	if tx == nil {
		return node.Written{}, errNobody
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	err := tx.usable()
	if err == nil && tx.ctx.Err() != nil {
		err = context.Cause(tx.ctx)
	}
	if err != nil {
		tx.end()
		return node.Written{}, err
	}
	for _, r := range tx.relations {
		r.commit(tx)
	}
	if tx.generations != nil {
		tx.db.generations = *tx.generations
	}
	tx.db.scheduled = slices.DeleteFunc(tx.db.scheduled, func(s *scheduled) bool { return s.by == tx })
	tx.db.scheduled = append(tx.db.scheduled, tx.scheduled...)
	if tx.log != nil {
		tx.log.Commit()
		tx.log = nil
	}
	tx.end()
	return tx.written, nil
}

// Rollback ends the transaction without its changes. After Commit it does nothing.
func (tx *Tx) Rollback() {
	if tx == nil {
		return
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	tx.end()
}

// end releases what the transaction holds. The caller holds the database's mu.
func (tx *Tx) end() {
	if tx.over {
		return
	}
	tx.over = true
	if tx.log != nil {
		tx.log.Rollback()
	}
	for _, r := range tx.relations {
		r.forget(tx)
	}
	for _, s := range tx.run {
		if s.by == tx {
			s.by = nil
		}
	}
	for _, l := range tx.locks {
		delete(tx.db.locks, l)
	}
	close(tx.ended)
}
