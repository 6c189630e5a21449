package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/freshet-cache/freshet/coherence"
)

// Tx is the transaction of one [Node.Write]. What it changes in watched tables is logged by their
// triggers; for the rest there are its Invalidate methods. Commit and Rollback are not for the
// function that got it.
type Tx struct {
	*sqlx.Tx
	transaction Transaction
	ctx         context.Context //nolint:containedctx // a Tx lives within one call of Write, whose context it is
	due         time.Duration   // after which the first of what it scheduled is due; 0 = nothing is
}

// Invalidate says that the entities change with this transaction, at once or as the strategies say.
// Without ids it says nothing, [NextGeneration] excepted.
func (tx *Tx) Invalidate(namespace string, ids []string, strategies ...Strategy) error {
	return tx.invalidate(what{coherence.KindEntity, namespace, ids}, strategies)
}

// InvalidateTag says that every entry with one of the tags changes with this transaction, at once or as
// the strategies say. Without tags it says nothing.
func (tx *Tx) InvalidateTag(tags []string, strategies ...Strategy) error {
	return tx.invalidate(what{coherence.KindTag, "", tags}, strategies)
}

// InvalidateNamespace says that every entry of the namespace changes with this transaction, at once or as
// the strategies say.
func (tx *Tx) InvalidateNamespace(namespace string, strategies ...Strategy) error {
	return tx.invalidate(what{coherence.KindNamespace, namespace, []string{""}}, strategies)
}

// Grace is [WithGrace] for all that changes with this transaction from here on, the rows of watched tables
// among it; 0 = no grace any more. At most [MaxGrace].
func (tx *Tx) Grace(d time.Duration) error {
	if err := tx.transaction.Grace(tx.ctx, d); err != nil {
		return fmt.Errorf("node: invalidate: %w", err)
	}
	return nil
}

// Transaction is what [Parts].Database began, for who has brought it.
func (tx *Tx) Transaction() Transaction { return tx.transaction }

// Write runs the function in one Postgres transaction and commits it if it returns nil. When Write
// returns, this replica answers no read from before the commit, the others have been told, and the
// token lets a session carry that to any of them. If the connection breaks during the commit nobody
// knows its outcome: Write then returns the error, and what may have changed is treated as changed.
func (n *Node) Write(ctx context.Context, f func(tx *Tx) error) (Token, error) {
	ctx, span := n.spans.Write(ctx)
	token, err := n.write(ctx, func() (written, error) { return n.transact(ctx, f) })
	endSpan(span, err)
	return token, err
}

// write runs the transaction, which Close waits for, and tells of what may have changed by it.
func (n *Node) write(ctx context.Context, transact func() (written, error)) (Token, error) {
	if !n.enter() {
		return Token{}, &Error{Op: "write", Err: ErrClosed}
	}
	defer n.writes.Done()
	w, err := transact()
	n.changed(ctx, w)
	if err != nil {
		return Token{}, &Error{Op: "write", Err: err}
	}
	if w.XID == 0 {
		return Token{}, nil // it wrote nothing
	}
	return coherence.TokenOfWrite(w.Timeline, w.XID), nil
}

// transact runs the function in one transaction. With an error it returns what may have changed all the
// same: nothing, unless the outcome of the commit is not known.
func (n *Node) transact(ctx context.Context, f func(tx *Tx) error) (written, error) {
	if n.parts.Database == nil {
		return written{}, errors.New("there are no transactions: Parts.Database is nil")
	}
	transaction, err := n.parts.Database.Begin(ctx)
	if err != nil {
		return written{}, err
	}
	defer transaction.Rollback() // nothing to roll back after a commit
	tx := &Tx{Tx: transaction.SQL(), transaction: transaction, ctx: ctx}
	if tx.Tx == nil {
		if n.parts.DB != nil {
			return written{}, errors.New("the transaction has no SQL, and Parts.DB is not nil")
		}
		if tx.Tx, err = n.db.BeginTxx(ctx, nil); err != nil {
			return written{}, err
		}
		defer tx.Tx.Rollback() // it has none of the changes
	}
	if err := f(tx); err != nil {
		return written{}, err
	}
	if transaction.SQL() == nil {
		if err := tx.Tx.Commit(); err != nil { // the function has ended it
			return written{}, err
		}
	}
	since := n.tracker.Now()
	w, err := transaction.Commit(ctx)
	if err != nil && w.XID == 0 {
		return written{}, err
	}
	return written{w, since, tx.due}, err
}

// Invalidate is [Tx.Invalidate] in a transaction of its own.
func (n *Node) Invalidate(ctx context.Context, namespace string, ids []string, strategies ...Strategy) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.Invalidate(namespace, ids, strategies...) })
}

// InvalidateTag is [Tx.InvalidateTag] in a transaction of its own.
func (n *Node) InvalidateTag(ctx context.Context, tags []string, strategies ...Strategy) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.InvalidateTag(tags, strategies...) })
}

// InvalidateNamespace is [Tx.InvalidateNamespace] in a transaction of its own.
func (n *Node) InvalidateNamespace(ctx context.Context, namespace string, strategies ...Strategy) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.InvalidateNamespace(namespace, strategies...) })
}

// written is what a transaction logged, and what this node knows of it besides.
type written struct {
	Written
	since coherence.Instant // before the commit was sent
	due   time.Duration     // after which the first of what it scheduled is due; 0 = nothing is
}

// changed tells of a commit: this replica first, then the others, then the space in L2.
func (n *Node) changed(ctx context.Context, w written) {
	if doubted := n.watches.doubted(); w.XID != 0 && len(doubted) > 0 {
		n.own.Wrote(n.tracker.Now(), doubted, false) // what it changed may not be among what it logged
	}
	if w.due > 0 {
		n.due.set(w.due)
	}
	if len(w.Scopes)+len(w.Graced) == 0 {
		return
	}
	n.counts.writes.Add(1)
	unlisted := w.Many || w.regenerates()
	if unlisted {
		// Too many to list, or what only a poll can tell: nothing is proven here until a poll that is sent
		// from now on.
		n.tracker.Observe(coherence.Wrote{})
	}
	// The others hear by polling of what has a grace: it is not urgent.
	for grace, scopes := range w.Graced {
		event := coherence.Wrote{Timeline: w.Timeline, XID: w.XID, Scopes: hashesOf(scopes), Grace: grace, Since: w.since}
		n.tracker.Observe(event)
		n.own.Wrote(n.tracker.Now(), event.Scopes, unlisted)
	}
	if len(w.Scopes) == 0 {
		return
	}
	event := coherence.Wrote{Timeline: w.Timeline, XID: w.XID, Scopes: hashesOf(w.Scopes)}
	n.tracker.Observe(event)
	n.own.Wrote(n.tracker.Now(), event.Scopes, unlisted)
	if n.bus != nil {
		if err := n.bus.Publish(event.Timeline, event.XID, event.Scopes); err != nil {
			n.counts.hintsUnsent.Add(1) // the others find it by polling
		}
	}
	n.unlink(ctx, w.Scopes)
	if w.regenerates() {
		n.follow(ctx)
	}
}

func hashesOf(scopes []coherence.Scope) []coherence.ScopeHash {
	hashes := make([]coherence.ScopeHash, len(scopes))
	for i, scope := range scopes {
		hashes[i] = scope.Hash()
	}
	return hashes
}

// maxUnlink bounds the keys removed from L2 after one write.
const maxUnlink = 1000

// unlink removes entries of changed entities from L2. It saves others from fetching what they would
// refuse; nothing depends on it.
func (n *Node) unlink(ctx context.Context, scopes []coherence.Scope) {
	if n.parts.L2 == nil {
		return
	}
	var keys []string
	n.mu.RLock()
	for _, scope := range scopes {
		if (scope.Kind != coherence.KindEntity && scope.Kind != coherence.KindView) || strings.HasPrefix(scope.ID, "?") {
			continue
		}
		for name, c := range n.caches {
			if name.namespace != scope.Namespace || (scope.Kind == coherence.KindView && name.view != scope.View) {
				continue
			}
			// An id without a key has no entry.
			if key, err := c.L2Key(scope.ID); err == nil && n.parts.L2.Available(key) {
				keys = append(keys, key)
				c.CountUnlink()
			}
		}
		if len(keys) >= maxUnlink {
			break
		}
	}
	n.mu.RUnlock()
	if len(keys) == 0 {
		return
	}
	_ = n.parts.L2.Unlink(context.WithoutCancel(ctx), keys...) // the shards count what fails
}

// enter counts a write as under way, until writes.Done, unless the node is closed.
func (n *Node) enter() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return false
	}
	n.writes.Add(1)
	return true
}

// awaitWrites returns when no write is under way any more, so that the others are told of each.
func (n *Node) awaitWrites() error {
	ended := make(chan struct{})
	go func() {
		n.writes.Wait()
		close(ended)
	}()
	patience := time.NewTimer(n.config.writeTimeout())
	defer patience.Stop()
	select {
	case <-ended:
		return nil
	case <-patience.C:
		return fmt.Errorf("node: close: a write goes on after %v; its hint may be lost, polls find the change", n.config.writeTimeout())
	}
}
