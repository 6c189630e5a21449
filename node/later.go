package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/freshet-cache/freshet/coherence"
	"github.com/freshet-cache/freshet/tiers"
)

// PutLater writes the value behind: it returns as soon as the application's stream of NATS JetStream has the
// put, and some replica writes it to Postgres by the Store, in a batch with others. Postgres may be away
// meanwhile. The cache needs [CacheConfig.WriteBehind]. The value travels as JSON, whatever the cache's codec.
//
// The guarantee is weaker than that of [Cache.Put]. Promised: a put without an error is in the stream, and goes
// from there to Postgres, or, when Postgres refuses the value itself, to the dead letters ([Node.DeadLetters]),
// whichever replicas die; in effect once, and after all earlier puts of its key. Every replica that is connected to
// NATS answers with the put from the moment it hears of it, this one at once, and one that is given the token not
// before; such an answer is labelled [Entry.Pending] and is never FRESH. Not promised: that
// Postgres accepts the value; any order to [Cache.Put], [Cache.Delete] and other writers of the key, which a
// pending put overtakes or overwrites; lists and other views, which show it when it is committed; that
// the stream survives a power cut, unless NATS runs with sync_interval: always, or with
// [WriteBehind.Replicas] on servers that do not fail together.
//
// An error wraps [ErrOverloaded] when the stream is full; [ErrTooLarge] for a value that NATS does not take,
// 1 MiB by default; [ErrBadID]. After any other the put may be in the stream or not; it is not in it twice.
func (c *Cache[V]) PutLater(ctx context.Context, id string, v V) (Token, error) {
	value, err := json.Marshal(v)
	if err != nil {
		err = fmt.Errorf("encode %T: %w", v, err)
	}
	return c.later(ctx, "put later", id, value, err)
}

// DeleteLater is [Cache.PutLater] of a deletion. Reads answer [ErrNotFound] while it is pending.
func (c *Cache[V]) DeleteLater(ctx context.Context, id string) (Token, error) {
	return c.later(ctx, "delete later", id, nil, nil)
}

func (c *Cache[V]) later(ctx context.Context, op, id string, value []byte, err error) (Token, error) {
	fail := func(err error) (Token, error) {
		return Token{}, &Error{Op: op, Namespace: c.name.namespace, View: c.name.view, Err: err}
	}
	if err != nil {
		return fail(err)
	}
	if c.pending == nil {
		return fail(errors.New("CacheConfig.WriteBehind is false; want true, and a Store"))
	}
	if err := c.writable([]string{id}); err != nil {
		return fail(err)
	}
	if !c.node.enter() {
		return fail(ErrClosed)
	}
	defer c.node.writes.Done()
	ctx, span := c.node.spans.Send(ctx, c.name.namespace, c.name.view)
	q := c.node.puts.Load()
	s, seq, err := q.publish(ctx, c.pending, id, value)
	endSpan(span, err)
	if err != nil {
		return fail(err)
	}
	c.pending.addFirst(put{id: id, value: value, seq: seq, at: time.Now()}, func() bool { return q.begun.Load() >= seq })
	return coherence.TokenOfPut(s.id, seq), nil
}

// Committed lets this read pass over pending puts: it answers what Postgres has, with the labels of any read. A
// token's place in the queue of puts does not count. A [Consistent] read, and a [Node.Snapshot], do so by themselves.
func Committed() ReadOption { return ReadOption{kind: optionCommitted} }

// isCommitted reports whether the options have [Committed], or [Consistent], which is about states of Postgres.
func isCommitted(options []ReadOption) bool {
	return slices.ContainsFunc(options, func(o ReadOption) bool { return o.kind == optionCommitted || o.kind == optionConsistent })
}

// show answers the id with its pending put, when there is one, as an Entry or [ErrNotFound].
func (c *Cache[V]) show(id string, token Token) (e Entry[V], shown bool, err error) {
	if !c.pending.any() {
		return e, false, nil
	}
	w, ok := c.pending.get(id)
	if !ok {
		return e, false, nil
	}
	e.Pending = true
	e.Token = token
	if s := c.node.puts.Load().opened.Load(); s != nil {
		e.Token = token.Merge(coherence.TokenOfPut(s.id, w.seq))
	}
	if w.removed {
		return e, true, ErrNotFound
	}
	e.Value = w.value
	return e, true, nil
}

// await makes sure that this node knows the puts that the token covers. Those that it can know by a poll only
// make the read ask for one.
func (c *Cache[V]) await(ctx context.Context, ids []string, want *tiers.Want) error {
	stream, place := want.Token.Queue()
	if stream == 0 {
		return nil
	}
	q := c.node.puts.Load()
	if s := q.opened.Load(); s != nil && s.id == stream && q.proven.Load() >= place {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, max(time.Second, c.node.config.Postgres.PollTimeout))
	defer cancel()
	tick := time.NewTicker(awaitPause)
	defer tick.Stop()
	for n := 0; ; n++ {
		s := q.opened.Load()
		switch {
		case s == nil:
		case s.id != stream:
			if q.valid(s) { // the token's stream is gone, and what was in it is in Postgres or lost
				want.Budget = 0
				return nil
			}
		case q.proven.Load() >= place:
			return nil
		case n%10 == 9 && q.valid(s) && q.isGone(ctx, s, place) && !c.pending.before(ids, place):
			want.Budget = 0
			return nil
		}
		select {
		case <-tick.C:
		case <-q.closing:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w: the stream of puts was not followed up to the token: %w", ErrUncertain, ctx.Err())
		}
	}
}

// awaitPause is between two looks at how far the stream was followed.
const awaitPause = 2 * time.Millisecond

// isGone reports whether the message is not in the stream any more: then it is settled.
func (q *queue) isGone(ctx context.Context, s *session, place uint64) bool {
	_, err := s.stream.GetMsg(ctx, place)
	return errors.Is(err, jetstream.ErrMsgNotFound)
}

// before reports whether one of the ids has a pending put from before the place.
func (p *pending[V]) before(ids []string, place uint64) bool {
	for _, id := range ids {
		if w, ok := p.get(id); ok && w.seq < place {
			return true
		}
	}
	return false
}
