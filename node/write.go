package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/freshet-cache/freshet/coherence"
)

// Tx is the transaction of one [Node.Write]. What it changes in watched tables is logged by their
// triggers; for the rest there are its Invalidate methods. Commit and Rollback are not for the
// function that got it.
type Tx struct {
	*sqlx.Tx
	ctx context.Context //nolint:containedctx // a Tx lives within one call of Write, whose context it is
}

// Invalidate says that the entities change with this transaction. Without ids it says nothing.
func (tx *Tx) Invalidate(namespace string, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	return tx.log(`select freshet.invalidate($1, variadic $2)`, namespace, pq.StringArray(ids))
}

// InvalidateView says that one view of an entity changes with this transaction.
func (tx *Tx) InvalidateView(namespace, id, view string) error {
	return tx.log(`select freshet.invalidate_view($1, $2, $3)`, namespace, id, view)
}

// InvalidateTag says that every entry with one of the tags changes with this transaction. Without tags
// it says nothing.
func (tx *Tx) InvalidateTag(tags ...string) error {
	if len(tags) == 0 {
		return nil
	}
	return tx.log(`select freshet.invalidate_tag(variadic $1)`, pq.StringArray(tags))
}

// InvalidateNamespace says that every entry of the namespace changes with this transaction.
func (tx *Tx) InvalidateNamespace(namespace string) error {
	return tx.log(`select freshet.invalidate_namespace($1)`, namespace)
}

func (tx *Tx) log(query string, args ...any) error {
	if _, err := tx.ExecContext(tx.ctx, query, args...); err != nil {
		return fmt.Errorf("node: invalidate: %w", err)
	}
	return nil
}

// Write runs the function in one Postgres transaction and commits it if it returns nil. When Write
// returns, this replica answers no read from before the commit, the others have been told, and the
// token lets a session carry that to any of them. If the connection breaks during the commit nobody
// knows its outcome: Write then returns the error, and what may have changed is treated as changed.
func (n *Node) Write(ctx context.Context, f func(tx *Tx) error) (Token, error) {
	return n.write(ctx, func() (written, error) { return n.transact(ctx, f) })
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
	if w.xid == 0 {
		return Token{}, nil // it wrote nothing
	}
	return coherence.TokenOfWrite(w.timeline, w.xid), nil
}

// transact runs the function in one transaction. With an error it returns what may have changed all the
// same: nothing, unless the outcome of the commit is not known.
func (n *Node) transact(ctx context.Context, f func(tx *Tx) error) (written, error) {
	tx, err := n.db.BeginTxx(ctx, nil)
	if err != nil {
		return written{}, err
	}
	defer tx.Rollback() // nothing to roll back after a commit
	if err := f(&Tx{Tx: tx, ctx: ctx}); err != nil {
		return written{}, err
	}
	w, err := changesOf(ctx, tx)
	if err != nil {
		return written{}, err
	}
	err = tx.Commit()
	if refused(err) {
		return written{}, err
	}
	if err != nil {
		return w, fmt.Errorf("commit: its outcome is not known: %w", err)
	}
	return w, nil
}

// Invalidate says that the entities changed, in a transaction of its own.
func (n *Node) Invalidate(ctx context.Context, namespace string, ids ...string) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.Invalidate(namespace, ids...) })
}

// InvalidateTag says that every entry with one of the tags changed, in a transaction of its own.
func (n *Node) InvalidateTag(ctx context.Context, tags ...string) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.InvalidateTag(tags...) })
}

// InvalidateNamespace says that every entry of the namespace changed, in a transaction of its own.
func (n *Node) InvalidateNamespace(ctx context.Context, namespace string) (Token, error) {
	return n.Write(ctx, func(tx *Tx) error { return tx.InvalidateNamespace(namespace) })
}

// refused reports whether the server said that the transaction is rolled back. Any other error of a
// commit, a lost connection above all, leaves its outcome open.
func refused(err error) bool {
	var answer *pq.Error
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.Code.Class() {
	case "08", "57", "58", "XX": // connection, operator intervention, system error, internal error
		return false
	}
	return answer.Code != "40003" // statement_completion_unknown
}

// written is what a transaction logged.
type written struct {
	timeline, xid uint64
	scopes        []coherence.Scope
	// many: there were more than maxWritten scopes, and scopes is not all of them.
	many bool
}

// maxWritten bounds the scopes of one write that are told one by one; what goes beyond is found by
// polling.
const maxWritten = 5000

// changesOf reads back what the transaction has logged so far, by whichever trigger. Deferred triggers
// run before, so that nothing is logged behind our back.
func changesOf(ctx context.Context, tx *sqlx.Tx) (written, error) {
	var w written
	if _, err := tx.ExecContext(ctx, `set constraints all immediate`); err != nil {
		return w, err
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf(`
select freshet.current_timeline(), pg_current_xact_id_if_assigned()::text::bigint, l.kind, l.namespace, l.id, l.view
  from (select 1) one left join lateral (
       select kind, namespace, id, view from freshet.log where xid = pg_current_xact_id_if_assigned() limit %d
  ) l on true`, maxWritten+1))
	if err != nil {
		return w, fmt.Errorf("read back what changed: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var timeline int64
		var xid sql.NullInt64
		var kind, namespace, id, view sql.NullString
		if err := rows.Scan(&timeline, &xid, &kind, &namespace, &id, &view); err != nil {
			return w, fmt.Errorf("read back what changed: %w", err)
		}
		w.timeline, w.xid = uint64(timeline), uint64(xid.Int64)
		if kind.String == "" {
			continue
		}
		if len(w.scopes) == maxWritten {
			w.many = true
			break
		}
		w.scopes = append(w.scopes, coherence.Scope{
			Kind: coherence.Kind(kind.String[0]), Namespace: namespace.String, ID: id.String, View: view.String,
		})
	}
	return w, rows.Err()
}

// changed tells of a commit: this replica first, then the others, then the space in L2.
func (n *Node) changed(ctx context.Context, w written) {
	if len(w.scopes) == 0 {
		return
	}
	n.counts.writes.Add(1)
	event := coherence.Wrote{Timeline: w.timeline, XID: w.xid, Scopes: make([]coherence.ScopeHash, len(w.scopes))}
	for i, scope := range w.scopes {
		event.Scopes[i] = scope.Hash()
	}
	unlisted := w.many || w.regenerates()
	if unlisted {
		// Too many to list, or what only a poll can tell: nothing is proven here until a poll that is sent
		// from now on.
		n.tracker.Observe(coherence.Wrote{})
	}
	n.tracker.Observe(event)
	n.own.Wrote(n.tracker.Now(), event.Scopes, unlisted)
	if n.bus != nil {
		if err := n.bus.Publish(event.Timeline, event.XID, event.Scopes); err != nil {
			n.counts.hintsUnsent.Add(1) // the others find it by polling
		}
	}
	n.unlink(ctx, w.scopes)
	if w.regenerates() {
		n.follow(ctx)
	}
}

// maxUnlink bounds the keys removed from L2 after one write.
const maxUnlink = 1000

// unlink removes entries of changed entities from L2. It saves others from fetching what they would
// refuse; nothing depends on it.
func (n *Node) unlink(ctx context.Context, scopes []coherence.Scope) {
	if n.l2 == nil {
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
			if key, err := c.L2Key(scope.ID); err == nil && n.l2.Available(key) {
				keys = append(keys, key)
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
	_ = n.l2.Unlink(context.WithoutCancel(ctx), keys...) // the shards count what fails
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
