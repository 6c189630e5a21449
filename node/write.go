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
	due time.Duration   // after which the first of what it scheduled is due; 0 = nothing is
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
	return tx.log(`select freshet.grace(make_interval(secs => $1))`, d.Seconds())
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
	t := &Tx{Tx: tx, ctx: ctx}
	if err := f(t); err != nil {
		return written{}, err
	}
	w, err := changesOf(ctx, tx)
	if err != nil {
		return written{}, err
	}
	w.due, w.since = t.due, n.tracker.Now()
	err = tx.Commit()
	if refused(err) {
		return written{}, err
	}
	if err != nil {
		return w, fmt.Errorf("commit: its outcome is not known: %w", err)
	}
	return w, nil
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
	// graced are the scopes whose changes have a grace, by their grace; they are not among scopes. The
	// commit was sent after since.
	graced map[time.Duration][]coherence.Scope
	since  coherence.Instant
	due    time.Duration // after which the first of what it scheduled is due; 0 = nothing is
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
select freshet.current_timeline(), pg_current_xact_id_if_assigned()::text::bigint, l.kind, l.namespace, l.id, l.view, l.grace
  from (select 1) one left join lateral (
       select kind, namespace, id, view, grace from freshet.log where xid = pg_current_xact_id_if_assigned() limit %d
  ) l on true`, maxWritten+1))
	if err != nil {
		return w, fmt.Errorf("read back what changed: %w", err)
	}
	defer rows.Close()
	for told := 0; rows.Next(); told++ {
		var timeline int64
		var xid, grace sql.NullInt64
		var kind, namespace, id, view sql.NullString
		if err := rows.Scan(&timeline, &xid, &kind, &namespace, &id, &view, &grace); err != nil {
			return w, fmt.Errorf("read back what changed: %w", err)
		}
		w.timeline, w.xid = uint64(timeline), uint64(xid.Int64)
		if kind.String == "" {
			continue
		}
		if told == maxWritten {
			w.many = true
			break
		}
		scope := coherence.Scope{Kind: coherence.Kind(kind.String[0]), Namespace: namespace.String, ID: id.String, View: view.String}
		if grace.Int64 == 0 || scope.Kind == coherence.KindGenerations { // which have none
			w.scopes = append(w.scopes, scope)
			continue
		}
		if w.graced == nil {
			w.graced = map[time.Duration][]coherence.Scope{}
		}
		d := time.Duration(grace.Int64) * time.Millisecond
		w.graced[d] = append(w.graced[d], scope)
	}
	return w, rows.Err()
}

// changed tells of a commit: this replica first, then the others, then the space in L2.
func (n *Node) changed(ctx context.Context, w written) {
	if doubted := n.watches.doubted(); w.xid != 0 && len(doubted) > 0 {
		n.own.Wrote(n.tracker.Now(), doubted, false) // what it changed may not be among what it logged
	}
	if w.due > 0 {
		n.due.set(w.due)
	}
	if len(w.scopes)+len(w.graced) == 0 {
		return
	}
	n.counts.writes.Add(1)
	unlisted := w.many || w.regenerates()
	if unlisted {
		// Too many to list, or what only a poll can tell: nothing is proven here until a poll that is sent
		// from now on.
		n.tracker.Observe(coherence.Wrote{})
	}
	// The others hear by polling of what has a grace: it is not urgent.
	for grace, scopes := range w.graced {
		event := coherence.Wrote{Timeline: w.timeline, XID: w.xid, Scopes: hashesOf(scopes), Grace: grace, Since: w.since}
		n.tracker.Observe(event)
		n.own.Wrote(n.tracker.Now(), event.Scopes, unlisted)
	}
	if len(w.scopes) == 0 {
		return
	}
	event := coherence.Wrote{Timeline: w.timeline, XID: w.xid, Scopes: hashesOf(w.scopes)}
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
