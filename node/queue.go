package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/freshet-cache/freshet/cluster"
	"github.com/freshet-cache/freshet/tiers"
)

// queue is a node's part of the application's stream of puts. It publishes puts, follows all of them, so that
// reads see them, and flushes those of its caches, for all. Its work is done in sessions: one from the opening
// of the stream until the connection to NATS has been away.
type queue struct {
	node   *Node
	nats   *nats.Conn
	js     jetstream.JetStream
	config WriteBehind
	sub    cluster.Subscription // of notices

	opened atomic.Pointer[session] // nil = never yet
	begun  atomic.Uint64           // the last message that was taken up; never below seen
	seen   atomic.Uint64           // every message up to here was followed, or was gone
	proven atomic.Uint64           // and what was gone is known to the tracker; never above seen
	caught chan struct{}           // closed when the stream was followed to its end for the first time
	wake   chan struct{}           // asks settle to look; sent by notices and the follower, never closed

	closing  chan struct{} // closed by close: nothing is begun any more
	stop     context.CancelFunc
	sessions sync.WaitGroup // run
	work     sync.WaitGroup // settle

	mu     sync.Mutex
	caches []follower              // by their namespaces
	again  context.CancelCauseFunc // ends the session under way; nil = there is none
	change chan struct{}           // closed and replaced when a session is opened
}

// follower is what the queue needs of a cache's pending puts.
type follower interface {
	cache() cacheName
	count() *putCounts
	empty() bool
	oldest() (int, time.Time)
	describe(id string) *ExplainedPut
	add(m put) error
	addFirst(m put, followed func() bool)
	settle(places []uint64)
	settleIf(is func(seq uint64) bool)
	settled() []place
	drop(places []place)
	clear()
	write(ctx context.Context, tx *Tx, puts []put) error
}

// session is the stream as it was opened.
type session struct {
	stream     jetstream.Stream
	id         uint64 // when the stream was made, in ns: names it
	last       uint64 // its last message then
	epochs     []epoch
	reconnects uint64 // of the connection, before it was opened
}

// epoch is that of the messages above after, but for those of later epochs.
type epoch struct {
	Epoch int64
	After uint64
}

// epoch is that of the message.
func (s *session) epoch(seq uint64) int64 {
	for _, e := range slices.Backward(s.epochs) {
		if seq > e.After {
			return e.Epoch
		}
	}
	return s.epochs[0].Epoch
}

// openQueue starts the node's part of the queue.
func openQueue(n *Node) (*queue, error) {
	connection, ok := n.conn.(natsLink)
	if !ok {
		return nil, errors.New("CacheConfig.WriteBehind wants NATS: Config.NATS.URLs is empty")
	}
	js, err := jetstream.New(connection.nats)
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	q := &queue{
		node: n, nats: connection.nats, js: js, config: n.config.WriteBehind,
		caught: make(chan struct{}), wake: make(chan struct{}, 1), closing: make(chan struct{}), change: make(chan struct{}),
	}
	if q.sub, err = n.conn.Subscribe(q.notices(), cluster.Queue{}, q.hear); err != nil {
		return nil, fmt.Errorf("subscribe to notices: %w", err)
	}
	var ctx context.Context
	ctx, q.stop = context.WithCancel(context.Background())
	q.sessions.Go(func() { q.run(ctx) })
	q.work.Go(func() { q.settle(ctx) })
	return q, nil
}

// The names on NATS. A namespace may have dots, which would divide a subject.
func (q *queue) name() string    { return "freshet-" + q.node.config.App + "-puts" }
func (q *queue) prefix() string  { return "freshet." + q.node.config.App + ".put." }
func (q *queue) notices() string { return "freshet." + q.node.config.App + ".applied" }

func (q *queue) subject(namespace string) string {
	return q.prefix() + strings.ReplaceAll(namespace, ".", "=")
}

// consumer names what the namespace's flushers pull from. It is the stream's alone: a flusher that has not noticed
// that the stream was made anew gets nothing of the new one, whose order it does not know.
func (s *session) consumer(namespace string) string {
	return strings.ReplaceAll(namespace, ".", "=") + "=" + strconv.FormatUint(s.id, 36)
}

// add enters a cache, whose namespace must not have another.
func (q *queue) add(c follower) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, other := range q.caches {
		if other.cache().namespace == c.cache().namespace {
			return fmt.Errorf("CacheConfig.WriteBehind: the cache of view %q has it already; want one for each namespace", other.cache().view)
		}
	}
	q.caches = append(q.caches, c)
	if q.again != nil {
		q.again(errNewCache)
	}
	return nil
}

// follower is the cache of the namespace that writes behind; nil if there is none. A nil queue has none.
func (q *queue) follower(namespace string) follower {
	if q == nil {
		return nil
	}
	for _, c := range q.followers() {
		if c.cache().namespace == namespace {
			return c
		}
	}
	return nil
}

func (q *queue) followers() []follower {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.caches)
}

var (
	errNewCache    = errors.New("node: a cache has come")
	errReconnected = errors.New("node: NATS was away")
	errNotOpen     = errors.New("node: the stream of puts is not open")
)

// reconnected ends the session, whose stream may have been lost meanwhile.
func (q *queue) reconnected() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.opened.Load(); q.again != nil && (s == nil || !q.valid(s)) {
		q.again(errReconnected)
	}
}

// valid reports whether the connection has not been away since the session was opened.
func (q *queue) valid(s *session) bool {
	return s != nil && q.nats.IsConnected() && q.nats.Stats().Reconnects == s.reconnects
}

// session returns the one under way, when there is one.
func (q *queue) session(ctx context.Context) (*session, error) {
	for {
		q.mu.Lock()
		change := q.change
		q.mu.Unlock()
		if s := q.opened.Load(); q.valid(s) {
			return s, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errNotOpen, ctx.Err())
		case <-q.closing:
			return nil, ErrClosed
		}
	}
}

// maxSessionPause bounds the pause before the stream is opened again.
const maxSessionPause = time.Second

// run is the goroutine that keeps a session.
func (q *queue) run(ctx context.Context) {
	var pause time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		err := q.keep(ctx)
		select {
		case <-q.closing:
			return
		default:
		}
		if errors.Is(err, errNewCache) || errors.Is(err, errReconnected) {
			pause = 0
			continue
		}
		if pause == 0 {
			q.node.log.Warn("node: the stream of puts is not followed; it is tried again", "error", err)
		}
		if time.Since(began) > 10*maxSessionPause {
			pause = 0
		}
		pause = min(max(2*pause, 50*time.Millisecond), maxSessionPause)
		timer := time.NewTimer(dutyJitter(pause))
		select {
		case <-timer.C:
		case <-q.closing:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// keep opens the stream, and follows and flushes until it cannot any more.
func (q *queue) keep(life context.Context) error {
	ctx, end := context.WithCancelCause(life)
	q.mu.Lock()
	q.again = end
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		q.again = nil
		q.mu.Unlock()
		end(nil)
	}()
	var work sync.WaitGroup
	work.Go(func() {
		select {
		case <-q.closing:
			end(ErrClosed)
		case <-ctx.Done():
		}
	})
	s, err := q.open(ctx)
	if err == nil {
		q.begin(s)
		for _, c := range q.followers() {
			for range q.config.flushers() {
				work.Go(func() { end(q.flush(ctx, life, s, c)) })
			}
		}
		err = q.follow(ctx, s)
	}
	end(err)
	work.Wait() // what a flusher has in hand is written, or left to others
	return context.Cause(ctx)
}

// open makes the stream, if need be, and sees in which order its messages are to those before.
func (q *queue) open(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s := &session{reconnects: q.nats.Stats().Reconnects}
	var err error
	if s.stream, err = q.makeStream(ctx); err != nil {
		return nil, fmt.Errorf("make the stream %s: %w", q.name(), err)
	}
	made := s.stream.CachedInfo().Created
	s.id = uint64(made.UnixNano())
	tx, err := q.node.db.BeginTxx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() // nothing to roll back after a commit
	app, stream := q.node.config.App, strconv.FormatUint(s.id, 10)
	if _, err := tx.ExecContext(ctx, `select pg_advisory_xact_lock(hashtext('freshet.queue ' || $1))`, app); err != nil {
		return nil, err
	}
	if err := tx.SelectContext(ctx, &s.epochs, `select epoch, after from freshet.queues where app = $1 and stream = $2 order by epoch`, app, stream); err != nil {
		return nil, err
	}
	var highest uint64 // what has come here of the current epoch
	if len(s.epochs) > 0 {
		if err := tx.GetContext(ctx, &highest, `
select greatest((select max(seq) from freshet.applied where app = $1 and epoch = $2),
                (select max(seq) from freshet.dead_letters where app = $1 and epoch = $2),
                (select greatest(trimmed, after) from freshet.queues where epoch = $2))`, app, s.epochs[len(s.epochs)-1].Epoch); err != nil {
			return nil, err
		}
	}
	// After that: what was in Postgres then is in the stream by now, unless it was lost.
	info, err := s.stream.Info(ctx)
	if err != nil {
		return nil, err
	}
	if !info.Created.Equal(made) {
		return nil, errReconnected
	}
	s.last = info.State.LastSeq
	if len(s.epochs) == 0 || highest > s.last {
		e := epoch{}
		if len(s.epochs) > 0 {
			e.After = s.last
			q.node.log.Error("node: the stream of puts has lost its end: puts that were acknowledged are lost, but for those that are in Postgres",
				"stream", q.name(), "last", s.last, "written", highest)
		}
		if err := tx.GetContext(ctx, &e.Epoch, `insert into freshet.queues (app, stream, after) values ($1, $2, $3) returning epoch`,
			app, stream, int64(e.After)); err != nil {
			return nil, err
		}
		s.epochs = append(s.epochs, e)
	}
	return s, tx.Commit()
}

// makeStream finds the stream, makes it, or brings it to the configured bounds.
func (q *queue) makeStream(ctx context.Context) (jetstream.Stream, error) {
	want := jetstream.StreamConfig{
		Name: q.name(), Subjects: []string{q.prefix() + "*"}, Description: "puts of " + q.node.config.App + " that are not in Postgres yet",
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, Replicas: q.config.replicas(),
		MaxMsgs: int64(q.config.maxPending()), MaxBytes: q.config.maxBytes(), AllowDirect: true,
	}
	stream, err := q.js.Stream(ctx, q.name())
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return q.js.CreateOrUpdateStream(ctx, want) // another replica may be first
	}
	if err != nil {
		return nil, err
	}
	is := stream.CachedInfo().Config
	if is.MaxMsgs == want.MaxMsgs && is.MaxBytes == want.MaxBytes && is.Replicas == want.Replicas && slices.Equal(is.Subjects, want.Subjects) &&
		is.Discard == want.Discard && is.Retention == want.Retention {
		return stream, nil
	}
	return q.js.UpdateStream(ctx, want)
}

// begin makes the session the one under way.
func (q *queue) begin(s *session) {
	before := q.opened.Load()
	lost := func(seq uint64) bool { return seq > s.last }
	if before != nil && before.id != s.id {
		lost = func(uint64) bool { return true }
		q.begun.Store(0)
		q.seen.Store(0)
		q.proven.Store(0)
	} else if q.seen.Load() > s.last {
		q.begun.Store(s.last)
		q.seen.Store(s.last)
		q.proven.Store(min(q.proven.Load(), s.last))
	}
	for _, c := range q.followers() {
		c.settleIf(lost)
	}
	q.look()
	q.mu.Lock()
	q.opened.Store(s)
	close(q.change)
	q.change = make(chan struct{})
	q.mu.Unlock()
}

// follow takes every message into the caches' pending puts.
func (q *queue) follow(ctx context.Context, s *session) error {
	floors := map[string]uint64{} // namespace -> up to where everything is settled
	for _, c := range q.followers() {
		floors[c.cache().namespace], _ = q.floor(ctx, s, c) // 0 if it is not known
	}
	consumer, err := q.js.OrderedConsumer(ctx, q.name(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{q.prefix() + "*"}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq: q.seen.Load() + 1, InactiveThreshold: time.Minute, MaxResetAttempts: 2,
	})
	if err != nil {
		return fmt.Errorf("follow the stream: %w", err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("follow the stream: %w", err)
	}
	defer messages.Stop()
	if consumer.CachedInfo().NumPending == 0 {
		q.caughtUp()
	}
	caches := map[string]follower{}
	for _, c := range q.followers() {
		caches[q.subject(c.cache().namespace)] = c
	}
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("follow the stream: %w", err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("follow the stream: %w", err)
		}
		seq, gone := meta.Sequence.Stream, false
		q.begun.Store(seq)
		if c, ok := caches[m.Subject()]; ok {
			if gone = seq <= floors[c.cache().namespace]; !gone {
				q.take(c, m, meta)
			}
		}
		q.advance(seq, gone)
		if meta.NumPending == 0 {
			q.caughtUp()
		}
	}
}

func (q *queue) take(c follower, m jetstream.Msg, meta *jetstream.MsgMetadata) {
	p, err := parsePut(m.Data())
	if err == nil {
		p.seq, p.at = meta.Sequence.Stream, meta.Timestamp
		err = c.add(p)
	}
	if err != nil {
		q.node.log.Warn("node: a put is not shown before it is flushed", "namespace", c.cache().namespace, "message", meta.Sequence.Stream, "error", tiers.Loggable(err))
	}
}

// advance notes that a message was followed. What is missing before it, or is gone itself, is in Postgres or
// was given up: a poll must show that before a token's bearer may rely on it.
func (q *queue) advance(seq uint64, gone bool) {
	before := q.seen.Swap(seq)
	if !gone && seq == before+1 && q.proven.Load() == before {
		q.proven.CompareAndSwap(before, seq)
		return
	}
	q.look()
}

func (q *queue) caughtUp() {
	select {
	case <-q.caught:
	default:
		close(q.caught) // by the one goroutine that follows
	}
}

// awaitFollowing waits until the stream was followed to its end once, or for a while.
func (q *queue) awaitFollowing(ctx context.Context) {
	patience := time.NewTimer(followWait)
	defer patience.Stop()
	select {
	case <-q.caught:
	case <-patience.C:
	case <-ctx.Done():
	case <-q.closing:
	}
}

// followWait bounds how long [Node.Ready] waits for the stream of puts, which needs NATS.
const followWait = 2 * time.Second

// close ends the queue: nothing is begun any more, flushers write what they have in hand, up to WriteTimeout,
// and what is left in the stream is for others. It is called once.
func (q *queue) close() {
	close(q.closing)
	patience := time.AfterFunc(q.node.config.writeTimeout(), q.stop)
	q.sessions.Wait()
	patience.Stop()
	q.stop()
	q.work.Wait()
	_ = q.sub.Close() // fails only on a closed connection
	for _, c := range q.followers() {
		c.clear()
	}
}
