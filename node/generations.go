package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/coherence"
)

// Generation is what entries of a namespace are kept under: a number of the whole application and one of the
// namespace. Entries of another generation than the present one are not used. Both begin at 1.
type Generation = cluster.Generation

// GenerationChange says why a generation changes, for the history, and on which condition.
type GenerationChange struct {
	// Why it changes: 1 to 1000 characters.
	Why string
	// By whom, up to 200 characters; empty = the role that is connected to Postgres.
	By string
	// Expect is the number that must be the present one, else nothing changes: [ErrConflict]. Of two who
	// expect the same, one succeeds. 0 = whatever it is.
	Expect uint32
}

// What changes a generation, see [GenerationEvent].
const (
	ActionIncrement = "increment"
	ActionSet       = "set"
	ActionRollback  = "rollback"
)

// GenerationEvent is one change of a generation.
type GenerationEvent struct {
	Number     int64     `db:"number" json:"number"` // in the order of the changes of one namespace
	Namespace  string    `db:"namespace" json:"namespace"`
	Generation uint32    `db:"generation" json:"generation"`
	Previous   uint32    `db:"previous" json:"previous"`
	Action     string    `db:"action" json:"action"` // [ActionIncrement], [ActionSet] or [ActionRollback]
	By         string    `db:"who" json:"by"`
	Why        string    `db:"why" json:"why"`
	At         time.Time `db:"at" json:"at"` // by the clock of Postgres
}

// Generation is the namespace's as this replica knows it: as of its last poll. For "" the number of the whole
// application is told, and none of a namespace.
func (n *Node) Generation(namespace string) Generation { return n.tracker.Generations().Of(namespace) }

// NextGeneration gives the namespace, or with "" the whole application, a generation that it has never had, and
// returns its number. From the commit on, everything that is cached of it has to be loaded again: on this
// replica when the call returns, on any that is given the token, and on the others within the budget, usually a
// moment later. It costs the same for one entry as for millions.
func (n *Node) NextGeneration(ctx context.Context, namespace string, c GenerationChange) (number uint32, t Token, err error) {
	t, err = n.Write(ctx, func(tx *Tx) error { number, err = tx.NextGeneration(namespace, c); return err })
	return number, t, err
}

// SetGeneration is [Node.NextGeneration] with a number of the caller's choice. One that the namespace has had
// before comes back as by [Node.RollbackGeneration]. If it is the present one, nothing happens.
func (n *Node) SetGeneration(ctx context.Context, namespace string, number uint32, c GenerationChange) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.SetGeneration(namespace, number, c) })
}

// RollbackGeneration goes back to an earlier generation of the namespace, to = 0: to that before the present
// one, and returns its number. Of its entries those are used that still hold: what has changed or was
// invalidated meanwhile has to be loaded again, as ever.
func (n *Node) RollbackGeneration(ctx context.Context, namespace string, to uint32, c GenerationChange) (number uint32, t Token, err error) {
	t, err = n.Write(ctx, func(tx *Tx) error { number, err = tx.RollbackGeneration(namespace, to, c); return err })
	return number, t, err
}

// maxHistory is how many changes of a namespace Postgres keeps.
const maxHistory = 1000

// GenerationHistory returns the last changes of the namespace's generation, or with "" of the application's, the
// latest first: as many as limit, up to 1,000, which is as many as there are; 0 = 100.
func (n *Node) GenerationHistory(ctx context.Context, namespace string, limit int) ([]GenerationEvent, error) {
	if limit < 0 || limit > maxHistory {
		return nil, fmt.Errorf("node: generation history: limit is %d; want 1 to %d, or 0 for 100", limit, maxHistory)
	}
	if n.parts.Database == nil {
		return nil, errors.New("node: generation history: there is no database: Parts.Database is nil")
	}
	events, err := n.parts.Database.GenerationHistory(ctx, namespace, cmp.Or(limit, 100))
	if err != nil {
		return nil, fmt.Errorf("node: generation history: %w", err)
	}
	return events, nil
}

// NextGeneration is [Node.NextGeneration] as a part of this transaction. Until its end, others who change
// generations wait.
func (tx *Tx) NextGeneration(namespace string, c GenerationChange) (uint32, error) {
	return tx.generation(GenerationStep{ActionIncrement, namespace, 0, c})
}

// SetGeneration is [Node.SetGeneration] as a part of this transaction.
func (tx *Tx) SetGeneration(namespace string, number uint32, c GenerationChange) error {
	_, err := tx.generation(GenerationStep{ActionSet, namespace, number, c})
	return err
}

// RollbackGeneration is [Node.RollbackGeneration] as a part of this transaction.
func (tx *Tx) RollbackGeneration(namespace string, to uint32, c GenerationChange) (uint32, error) {
	return tx.generation(GenerationStep{ActionRollback, namespace, to, c})
}

func (tx *Tx) generation(s GenerationStep) (uint32, error) {
	if s.Why == "" {
		return 0, errors.New("node: GenerationChange.Why is empty; want why the generation changes")
	}
	number, err := tx.transaction.ChangeGeneration(tx.ctx, s)
	switch {
	case errors.Is(err, ErrConflict):
		return 0, fmt.Errorf("node: %w", err)
	case err != nil:
		return 0, fmt.Errorf("node: change a generation: %w", err)
	}
	return number, nil
}

// regenerates reports whether other generations are among what a transaction logged.
func (w written) regenerates() bool {
	for _, scope := range w.Scopes {
		if scope.Kind == coherence.KindGenerations {
			return true
		}
	}
	return false
}

// follow polls, so that this replica knows what it has just written. If that fails, reads wait for a poll, as
// nothing is proven before.
func (n *Node) follow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, max(time.Second, n.config.Postgres.PollTimeout))
	defer cancel()
	_, _ = n.tracker.Barrier(ctx)
}
