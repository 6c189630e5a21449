package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// BatchStats describes a named batch of changes that wait in Postgres, see [Batch].
type BatchStats struct {
	Name    string    `json:"name" db:"name"`
	Entries int64     `json:"entries" db:"entries"` // changes in it, with repetitions
	Due     time.Time `json:"due,omitzero"`         // when it runs by itself, on Postgres' clock; zero = it does not
	Since   time.Time `json:"since" db:"since"`     // of its first change
}

// MaxBatches bounds the batches that [Node.Batches] lists.
const MaxBatches = 1000

// Batches lists the batches that have something in them, by name, at most [MaxBatches].
func (n *Node) Batches(ctx context.Context) ([]BatchStats, error) {
	if n.parts.Database == nil {
		return nil, &Error{Op: "read", Err: errors.New("batches: there is no database: Parts.Database is nil")}
	}
	batches, err := n.parts.Database.Batches(ctx)
	if err != nil {
		return nil, &Error{Op: "read", Err: fmt.Errorf("batches: %w", err)}
	}
	return batches, nil
}

// RunBatch runs what is in the batch by now, a thousand entries in a transaction, and returns how many that
// were; 0 = there is no such batch. With an error it may have run some. What another replica is running at
// the same time is done, too, when it returns.
func (n *Node) RunBatch(ctx context.Context, name string) (int64, error) {
	if name == "" {
		return 0, &Error{Op: "write", Err: errNoBatch}
	}
	var all int64
	for {
		ran, err := n.runSome(ctx, name)
		if all += ran; err != nil || ran < runAtMost {
			return all, err
		}
	}
}

// DropBatch drops what is in the batch by now and returns how many entries that were; 0 = there is no such
// batch.
func (n *Node) DropBatch(ctx context.Context, name string) (int64, error) {
	if name == "" {
		return 0, &Error{Op: "write", Err: errNoBatch}
	}
	return n.countIn(ctx, func(tx *Tx) (int64, error) { return tx.transaction.DropBatch(ctx, name) })
}

var errNoBatch = errors.New("batch is empty; want the name of a batch")

// runAtMost bounds the entries that are run in one transaction.
const runAtMost = 1000

// runSome runs some of the batch, or with "" of what is due.
func (n *Node) runSome(ctx context.Context, batch string) (int64, error) {
	return n.countIn(ctx, func(tx *Tx) (int64, error) { return tx.transaction.RunScheduled(ctx, batch, runAtMost) })
}

// countIn runs what returns a number of entries in a transaction, and tells of what changed by it as of any write.
func (n *Node) countIn(ctx context.Context, run func(tx *Tx) (int64, error)) (entries int64, err error) {
	_, err = n.Write(ctx, func(tx *Tx) (err error) { entries, err = run(tx); return err })
	if err != nil {
		entries = 0
	}
	return entries, err
}

// lookers is about how many replicas look each second for what is due, however many there are.
const lookers = 4

// runDue runs what is due: the duty of every replica.
func (n *Node) runDue(ctx context.Context) error {
	if !n.due.rang() && n.members != nil {
		if m := len(n.members.View().Members); m > lookers && rand.IntN(m) >= lookers {
			return nil
		}
	}
	if due, err := n.parts.Database.Due(ctx); err != nil || !due {
		return err
	}
	for {
		ran, err := n.runSome(ctx, "")
		switch {
		case errors.Is(err, ErrClosed):
			return nil
		case err != nil || ran < runAtMost:
			return err
		}
	}
}

// alarm wakes a duty when something is due of which this node knows. It keeps the first time only: what
// comes after it is found by the duty's regular runs. It is safe for concurrent use.
type alarm struct {
	wake chan struct{} // sent when it rings, never closed

	mu      sync.Mutex
	timer   *time.Timer // nil = never set
	at      time.Time   // when it rings; zero = it is not set
	ringing bool        // it has rung since rang was called
	stopped bool
}

func newAlarm() alarm { return alarm{wake: make(chan struct{}, 1)} }

// set has it ring after so long at the latest.
func (a *alarm) set(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := time.Now().Add(d)
	if a.stopped || (!a.at.IsZero() && !at.Before(a.at)) {
		return
	}
	a.at = at
	if a.timer == nil {
		a.timer = time.AfterFunc(d, a.ring)
	} else {
		a.timer.Reset(d)
	}
}

func (a *alarm) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.ringing = time.Time{}, true
	select {
	case a.wake <- struct{}{}:
	default: // it is about to run already
	}
}

// rang reports whether it has rung since the last call.
func (a *alarm) rang() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	rang := a.ringing
	a.ringing = false
	return rang
}

// stop has it never ring again.
func (a *alarm) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	if a.timer != nil {
		a.timer.Stop()
	}
}
