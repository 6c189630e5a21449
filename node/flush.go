package node

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/freshet-cache/freshet/tiers"
)

// flusher brings a cache's puts from the stream to Postgres, batch by batch, in one session.
type flusher struct {
	queue    *queue
	session  *session
	cache    follower
	consumer jetstream.Consumer
	life     context.Context //nolint:containedctx // the queue's: bounds the transactions, which outlive the session

	places chan struct{}  // bounds the puts that are tried again by themselves: one token each
	work   sync.WaitGroup // they
}

// maxRefused bounds the puts of one flusher that are tried again by themselves. One more holds up the batches.
const maxRefused = 16

// idleWait bounds one wait for a put; then NATS is asked again.
const idleWait = 5 * time.Second

// flush is the goroutine of one flusher. It ends with its session, or with what stands in the way.
func (q *queue) flush(ctx, life context.Context, s *session, c follower) error {
	consumer, err := q.js.CreateOrUpdateConsumer(ctx, q.name(), jetstream.ConsumerConfig{
		Durable: s.consumer(c.cache().namespace), FilterSubject: q.subject(c.cache().namespace),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.config.ackWait(), MaxDeliver: -1, MaxAckPending: max(1000, 20*q.config.batch()),
	})
	if err != nil {
		return fmt.Errorf("make the consumer of %s: %w", c.cache().namespace, err)
	}
	f := &flusher{queue: q, session: s, cache: c, consumer: consumer, life: life, places: make(chan struct{}, maxRefused)}
	defer f.work.Wait()
	for ctx.Err() == nil {
		messages, err := f.fetch(ctx)
		f.flush(ctx, messages)
		if err != nil {
			return err
		}
	}
	return nil
}

// fetch returns what there is, up to a batch; when there is nothing, it waits for a first put, and then for
// others to join it. What comes with an error was delivered all the same.
func (f *flusher) fetch(ctx context.Context) ([]jetstream.Msg, error) {
	size := f.queue.config.batch()
	messages, err := pull(f.consumer.FetchNoWait(size))
	if err != nil || len(messages) > 0 {
		return messages, err
	}
	wait, cancel := context.WithTimeout(ctx, idleWait)
	defer cancel()
	messages, err = pull(f.consumer.Fetch(1, jetstream.FetchContext(wait)))
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	if err != nil || len(messages) == 0 || size == 1 {
		return messages, err
	}
	others := time.NewTimer(f.queue.config.flushEvery())
	defer others.Stop()
	select {
	case <-others.C:
	case <-ctx.Done():
	}
	more, err := pull(f.consumer.FetchNoWait(size - 1))
	return append(messages, more...), err
}

func pull(batch jetstream.MessageBatch, err error) ([]jetstream.Msg, error) {
	if err != nil {
		return nil, fmt.Errorf("pull puts: %w", err)
	}
	var messages []jetstream.Msg
	for m := range batch.Messages() {
		messages = append(messages, m)
	}
	if err := batch.Error(); err != nil {
		return messages, fmt.Errorf("pull puts: %w", err)
	}
	return messages, nil
}

// delivered is a put with its message.
type delivered struct {
	put
	message jetstream.Msg
}

// flush writes what was delivered. Whatever it does not acknowledge comes again, here or elsewhere.
func (f *flusher) flush(ctx context.Context, messages []jetstream.Msg) {
	if len(messages) == 0 {
		return
	}
	if !f.queue.valid(f.session) {
		leave(messages) // of a stream that may have lost its end, whose order must be asked for first
		return
	}
	batch := make([]delivered, 0, len(messages))
	for _, m := range messages {
		meta, err := m.Metadata()
		if err != nil {
			continue // not of a stream
		}
		p, err := parsePut(m.Data())
		if err != nil {
			f.queue.node.log.Error("node: a message in the stream of puts is left to a build that can read it", "message", meta.Sequence.Stream, "error", err)
			_ = m.NakWithDelay(f.queue.config.maxRetry())
			continue
		}
		p.seq, p.at, p.number = meta.Sequence.Stream, meta.Timestamp, meta.NumDelivered
		p.epoch = f.session.epoch(p.seq)
		batch = append(batch, delivered{p, m})
	}
	slices.SortFunc(batch, func(a, b delivered) int { return int(int64(a.seq - b.seq)) })
	defer f.hold(messages)()
	f.try(ctx, batch)
}

// hold keeps the messages from being given to another until the function is called that it returns.
func (f *flusher) hold(messages []jetstream.Msg) (release func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(f.queue.config.ackWait() / 3)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
			}
			for _, m := range messages {
				_ = m.InProgress() // fails for those that are done, and without a connection
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// leave gives messages back at once.
func leave(messages []jetstream.Msg) {
	for _, m := range messages {
		_ = m.Nak() // or they come again after AckWait
	}
}

// try writes the puts in one transaction. If they are refused it tries them by halves, until the one is alone
// that is to blame.
func (f *flusher) try(ctx context.Context, batch []delivered) {
	if len(batch) == 0 {
		return
	}
	err := f.write(ctx, batch)
	switch {
	case err == nil:
		f.done(ctx, batch)
	case errors.Is(err, errLeft):
		for _, d := range batch {
			_ = d.message.Nak() // or they come again after AckWait
		}
	case len(batch) == 1:
		f.refuse(ctx, batch[0], err)
	default:
		f.try(ctx, batch[:len(batch)/2])
		f.try(ctx, batch[len(batch)/2:])
	}
}

// errLeft: the session ended before the puts could be written.
var errLeft = errors.New("left to others")

// write writes the puts in one transaction, however long Postgres is away.
func (f *flusher) write(ctx context.Context, batch []delivered) error { //nolint:contextcheck // what has begun outlives the one who stops fetching
	puts := make([]put, len(batch))
	for i, d := range batch {
		puts[i] = d.put
	}
	puts = newest(puts)
	var written int
	life, span := f.queue.node.spans.Flush(f.life, f.cache.cache().namespace, f.cache.cache().view, len(batch))
	err := f.persist(ctx, func(tx *Tx) (err error) {
		written, err = f.queue.apply(life, tx, f.cache, puts)
		return err
	})
	endSpan(span, err)
	if err != nil {
		return err
	}
	f.cache.count().applied.Add(uint64(written))
	f.cache.count().superseded.Add(uint64(len(batch) - written))
	return nil
}

// persist runs the function in a transaction, again and again while it is not to blame for its failure.
func (f *flusher) persist(ctx context.Context, write func(tx *Tx) error) error {
	node := f.queue.node
	for n := uint64(1); ; n++ {
		w, err := node.transact(f.life, write) //nolint:contextcheck // what has begun outlives the one who stops fetching
		node.changed(f.life, w)                //nolint:contextcheck // as above
		if err == nil || isRefusal(err) {
			return err
		}
		f.cache.count().retries.Add(1)
		if n == 1 {
			node.log.Warn("node: puts wait for Postgres", "namespace", f.cache.cache().namespace, "error", err)
		}
		pause := time.NewTimer(f.queue.config.pause(n))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return errLeft
		}
	}
}

// apply writes those of the puts, of different ids and sorted by them, that are later than what is there, and
// returns how many they are. The rows of freshet.applied are locked in the order of the ids, so that two
// flushers that have puts of the same ids come one after the other.
func (q *queue) apply(ctx context.Context, tx *Tx, c follower, puts []put) (int, error) {
	ids, epochs, places := make([]string, len(puts)), make([]int64, len(puts)), make([]int64, len(puts))
	for i, p := range puts {
		ids[i], epochs[i], places[i] = p.id, p.epoch, int64(p.seq)
	}
	namespace := c.cache().namespace
	var later []string
	if err := tx.SelectContext(ctx, &later, `
insert into freshet.applied as a (app, namespace, id, epoch, seq)
select $1, $2, p.id, p.epoch, p.seq from unnest($3::text[], $4::bigint[], $5::bigint[]) p (id, epoch, seq) order by p.id
on conflict (app, namespace, id) do update set epoch = excluded.epoch, seq = excluded.seq, at = excluded.at
 where (a.epoch, a.seq) < (excluded.epoch, excluded.seq)
returning id`, q.node.config.App, namespace, pq.StringArray(ids), pq.Int64Array(epochs), pq.Int64Array(places)); err != nil {
		return 0, fmt.Errorf("claim puts: %w", err)
	}
	if len(later) == 0 {
		return 0, nil
	}
	isLater := make(map[string]bool, len(later))
	for _, id := range later {
		isLater[id] = true
	}
	puts = slices.DeleteFunc(slices.Clone(puts), func(p put) bool { return !isLater[p.id] })
	if err := c.write(ctx, tx, puts); err != nil {
		return 0, fmt.Errorf("%w: %w", errStore, err)
	}
	return len(puts), tx.Invalidate(namespace, later)
}

// errStore: the Store failed.
var errStore = errors.New("the store")

// isRefusal reports whether the failure lies in the values: then it is no use to wait. What concerns the
// connection, the server's state, rights or the schema is not.
func isRefusal(err error) bool {
	if answer, ok := errors.AsType[*pq.Error](err); ok {
		switch answer.Code.Class() {
		case "08", "0A", "25", "26", "28", "2D", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58", "72", "F0", "HV", "XX":
			return false
		}
		return true
	}
	var network net.Error
	switch {
	case errors.As(err, &network), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, context.Canceled), errors.Is(err, sql.ErrConnDone), errors.Is(err, sql.ErrTxDone),
		errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return false
	}
	return errors.Is(err, errStore)
}

// done acknowledges what is in Postgres, as values or as dead letters, and tells of it. Dying before, they come
// again, and are seen to be there.
func (f *flusher) done(ctx context.Context, batch []delivered) {
	places := make([]uint64, len(batch))
	for i, d := range batch {
		places[i] = d.seq
		if i < len(batch)-1 {
			_ = d.message.Ack() // or it comes again after AckWait
		}
	}
	q := f.queue
	q.settled(places)
	_ = q.node.conn.Publish(q.notices(), appendNotice(nil, f.session.id, places)) // or askFloors finds it
	ctx, cancel := context.WithTimeout(ctx, doneWait)
	defer cancel()
	if err := batch[len(batch)-1].message.DoubleAck(ctx); err != nil {
		return
	}
	// What lies below is done with, and leaves room in the stream. If not, askFloors frees it.
	if floor, err := q.floor(ctx, f.session, f.cache); err == nil && floor > 0 {
		_ = f.session.stream.Purge(ctx, jetstream.WithPurgeSubject(q.subject(f.cache.cache().namespace)), jetstream.WithPurgeSequence(floor+1))
	}
}

// doneWait bounds the wait for NATS after a batch.
const doneWait = time.Second

// refuse has a put tried again by itself, while other batches go on.
func (f *flusher) refuse(ctx context.Context, d delivered, why error) {
	select {
	case f.places <- struct{}{}:
		f.work.Go(func() {
			defer func() { <-f.places }()
			f.insist(ctx, d, why)
		})
	default:
		f.insist(ctx, d, why)
	}
}

// insist tries a put until it is written, or has been tried often enough: then it becomes a dead letter. NATS
// could give it back after a delay, but may take as long as AckWait then.
func (f *flusher) insist(ctx context.Context, d delivered, why error) {
	q := f.queue
	defer f.hold([]jetstream.Msg{d.message})()
	for ; d.number < uint64(q.config.maxAttempts()); d.number++ {
		f.cache.count().retries.Add(1)
		pause := time.NewTimer(q.config.pause(d.number))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			leave([]jetstream.Msg{d.message})
			return
		}
		switch err := f.write(ctx, []delivered{d}); {
		case err == nil:
			f.done(ctx, []delivered{d})
			return
		case errors.Is(err, errLeft):
			leave([]jetstream.Msg{d.message})
			return
		default:
			why = err
		}
	}
	if err := f.persist(ctx, func(tx *Tx) error { return q.bury(f.life, tx, f.cache, d.put, why) }); err != nil {
		leave([]jetstream.Msg{d.message})
		if !errors.Is(err, errLeft) {
			q.node.log.Error("node: a put can neither be written nor be buried", "namespace", f.cache.cache().namespace, "message", d.seq, "error", tiers.Loggable(err))
		}
		return
	}
	f.cache.count().dead.Add(1)
	q.node.log.Error("node: a put is a dead letter", "namespace", f.cache.cache().namespace, "message", d.seq, "error", tiers.Loggable(why))
	f.done(ctx, []delivered{d})
}

// maxReason bounds the text of why a put was refused, in bytes.
const maxReason = 2000

func (q *queue) bury(ctx context.Context, tx *Tx, c follower, p put, why error) error {
	reason := strings.ToValidUTF8(strings.ReplaceAll(why.Error(), "\x00", ""), "")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	var value sql.NullString
	if p.value != nil {
		value = sql.NullString{String: string(p.value), Valid: true}
	}
	_, err := tx.ExecContext(ctx, `
insert into freshet.dead_letters (app, namespace, id, epoch, seq, value, error, attempts, put_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (app, epoch, seq) do nothing`,
		q.node.config.App, c.cache().namespace, p.id, p.epoch, int64(p.seq), value, reason, int64(p.number), p.at)
	return err
}
