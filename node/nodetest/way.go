package nodetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/node"
	"github.com/freshet-cache/freshet/tiers"
)

// way is one node's to the database, with what can happen on it.
type way struct {
	db *database

	mu      sync.Mutex
	state   wayState
	latency time.Duration
	breaks  int              // of the connections by now
	open    map[*Tx]struct{} // of the node's connections
	changed chan struct{}    // closed and replaced with every change of the state
}

// wayState is how a node reaches the database.
type wayState uint8

const (
	reached    wayState = iota
	hanging             // nothing comes back before its time is up
	losing              // commits are done, and their answers lost
	away                // it is refused at once, and connections are broken
	cutForGood          // the node is dead
)

func newWay(db *database) *way {
	return &way{db: db, open: map[*Tx]struct{}{}, changed: make(chan struct{})}
}

func (w *way) change(to wayState) {
	for _, tx := range w.turn(to) {
		tx.Rollback()
	}
}

// turn changes the state and returns the transactions whose connections are broken.
func (w *way) turn(to wayState) (broken []*Tx) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == cutForGood || w.state == to {
		return nil
	}
	if to >= away {
		broken = slices.Collect(maps.Keys(w.open))
		clear(w.open)
		w.breaks++
	}
	w.state = to
	close(w.changed)
	w.changed = make(chan struct{})
	return broken
}

func (w *way) slow(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.latency = d
}

var (
	errAway = errors.New("nodetest: Postgres refuses the connection")
	errLost = errors.New("nodetest: the connection to Postgres is lost")
	errHung = fmt.Errorf("nodetest: no answer from Postgres: %w", os.ErrDeadlineExceeded)
)

// call carries out the work in the database: half of the latency goes by before, and half after it. It takes no longer
// than the bound, 0 = as long as ctx allows. After an error nobody knows whether the work was done.
func (w *way) call(ctx context.Context, bound time.Duration, work func() error) error {
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, bound, errHung)
		defer cancel()
	}
	if err := w.travel(ctx); err != nil {
		return err
	}
	if err := work(); err != nil {
		return err
	}
	return w.travel(ctx)
}

// travel is one way to the database, or back.
func (w *way) travel(ctx context.Context) error {
	w.mu.Lock()
	latency := w.latency
	w.mu.Unlock()
	if latency > 0 {
		timer := time.NewTimer(latency / 2)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.mu.Lock()
		state, changed := w.state, w.changed
		w.mu.Unlock()
		switch state {
		case reached, losing:
			return nil
		case away, cutForGood:
			return errAway
		case hanging:
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// connection says how often the connections have broken by now, and whether the answers of commits are lost.
func (w *way) connection() (breaks int, lossy bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.breaks, w.state == losing
}

// enter notes a transaction of the node's, until leave, and returns how often its connections have broken by now.
func (w *way) enter(tx *Tx) (breaks int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[tx] = struct{}{}
	return w.breaks
}

func (w *way) leave(tx *Tx) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, tx)
}

// wayLog implements [coherence.Log] for one node.
type wayLog struct {
	way     *way
	timeout time.Duration // of each call

	mu     sync.Mutex
	closed bool
}

var errClosed = errors.New("nodetest: the log is closed")

func (l *wayLog) call(ctx context.Context, work func() error) error {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return errClosed
	}
	return l.way.call(ctx, l.timeout, work)
}

// Poll implements [coherence.Log].
func (l *wayLog) Poll(ctx context.Context, since coherence.Snapshot, limit int) (r coherence.PollResult, err error) {
	err = l.call(ctx, func() (err error) {
		r, err = l.way.db.log.Poll(ctx, since, limit)
		return err
	})
	if err != nil {
		return coherence.PollResult{}, err
	}
	return r, nil
}

// Renew implements [coherence.Log].
func (l *wayLog) Renew(ctx context.Context, broken uint64) error {
	return l.call(ctx, func() error { return l.way.db.log.Renew(ctx, broken) })
}

// Trim implements [coherence.Log].
func (l *wayLog) Trim(ctx context.Context, keep time.Duration) (n int, err error) {
	err = l.call(ctx, func() (err error) {
		n, err = l.way.db.log.Trim(ctx, keep)
		return err
	})
	return n, err
}

// Close implements [coherence.Log]. The log itself is everybody's.
func (l *wayLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}

// wayDatabase implements [node.Database] for one node.
type wayDatabase struct {
	way     *way
	timeout time.Duration // of each statement
}

// Begin implements [node.Database].
func (d wayDatabase) Begin(ctx context.Context) (node.Transaction, error) {
	t := &transaction{wayDatabase: d}
	err := d.way.call(ctx, d.timeout, func() error {
		t.tx = d.way.db.begin(ctx)
		t.breaks = d.way.enter(t.tx)
		return nil
	})
	if err != nil {
		if t.tx != nil {
			t.Rollback()
		}
		return nil, err
	}
	return t, nil
}

// BeginRead implements [node.Database].
func (d wayDatabase) BeginRead(ctx context.Context, ended func()) (tiers.Transaction, error) {
	if err := d.way.call(ctx, d.timeout, func() error { return nil }); err != nil {
		return nil, err
	}
	return d.way.db.beginRead(ended), nil
}

// GenerationHistory implements [node.Database].
func (d wayDatabase) GenerationHistory(ctx context.Context, namespace string, limit int) (events []node.GenerationEvent, err error) {
	err = d.way.call(ctx, d.timeout, func() error {
		events = d.way.db.generationHistory(namespace, limit)
		return nil
	})
	return events, err
}

// Batches implements [node.Database].
func (d wayDatabase) Batches(ctx context.Context) (batches []node.BatchStats, err error) {
	err = d.way.call(ctx, d.timeout, func() error {
		batches = d.way.db.batches()
		return nil
	})
	return batches, err
}

// Due implements [node.Database].
func (d wayDatabase) Due(ctx context.Context) (due bool, err error) {
	err = d.way.call(ctx, d.timeout, func() error {
		due = d.way.db.isDue()
		return nil
	})
	return due, err
}

// Scheduled implements [node.Database].
func (d wayDatabase) Scheduled(ctx context.Context, namespace string, ids []string, limit int) (scopes []coherence.Scope, err error) {
	err = d.way.call(ctx, d.timeout, func() error {
		scopes = d.way.db.waiting(namespace, ids, limit)
		return nil
	})
	return scopes, err
}

// transaction implements [node.Transaction]: a node's own, over its way.
type transaction struct {
	wayDatabase
	tx     *Tx
	breaks int // of the way when it began
}

// TxOf is the transaction of a [node.Node.Write] on one of a cluster's nodes, in which tables can be changed; nil for
// one on servers.
func TxOf(tx *node.Tx) *Tx {
	if t, ok := tx.Transaction().(*transaction); ok {
		return t.tx
	}
	return nil
}

// call is one statement of the transaction, whose connection must not have broken since it began.
func (t *transaction) call(ctx context.Context, work func() error) error {
	return t.way.call(ctx, t.timeout, func() error {
		if breaks, _ := t.way.connection(); breaks != t.breaks {
			return errLost
		}
		return work()
	})
}

// SQL implements [node.Transaction]: there is none.
func (t *transaction) SQL() *sqlx.Tx { return nil }

// Invalidate implements [node.Transaction].
func (t *transaction) Invalidate(ctx context.Context, i node.Invalidation) error {
	return t.call(ctx, func() error { return t.tx.invalidate(i) })
}

// Grace implements [node.Transaction].
func (t *transaction) Grace(ctx context.Context, d time.Duration) error {
	return t.call(ctx, func() error { return t.tx.Grace(d) })
}

// ChangeGeneration implements [node.Transaction].
func (t *transaction) ChangeGeneration(ctx context.Context, s node.GenerationStep) (number uint32, err error) {
	err = t.call(ctx, func() (err error) {
		number, err = t.tx.changeGeneration(s)
		return err
	})
	return number, err
}

// RunScheduled implements [node.Transaction].
func (t *transaction) RunScheduled(ctx context.Context, batch string, limit int) (ran int64, err error) {
	err = t.call(ctx, func() (err error) {
		ran, err = t.tx.runScheduled(batch, limit)
		return err
	})
	return ran, err
}

// DropBatch implements [node.Transaction].
func (t *transaction) DropBatch(ctx context.Context, batch string) (dropped int64, err error) {
	err = t.call(ctx, func() (err error) {
		dropped, err = t.tx.dropBatch(batch)
		return err
	})
	return dropped, err
}

// Commit implements [node.Transaction].
func (t *transaction) Commit(ctx context.Context) (node.Written, error) {
	var w node.Written
	var refused error
	err := t.call(ctx, func() error {
		w, refused = t.tx.commit()
		return nil
	})
	if _, lossy := t.way.connection(); lossy {
		err = cmp.Or(err, errLost)
	}
	switch {
	case refused != nil:
		return node.Written{}, refused
	case err != nil:
		return w, fmt.Errorf("commit: its outcome is not known: %w", err)
	}
	return w, nil
}

// Rollback implements [node.Transaction]. Where the node does not reach the database, the database sees the end of
// its connection.
func (t *transaction) Rollback() {
	t.way.leave(t.tx)
	t.tx.Rollback()
}
