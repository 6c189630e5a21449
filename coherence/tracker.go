package coherence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// TrackerConfig describes a [Tracker].
type TrackerConfig struct {
	Log  Log    // required; the tracker owns it from then on
	Boot uint64 // names this process to other nodes; required
	// Interval between polls, with a fifth of it as jitter either way; 0 = 250 ms.
	Interval time.Duration
	// Retention is how long changes stay in the log; a node that could not poll for longer, or an
	// entry in L2 that is older when a node starts, must be loaded again. 0 = 1 h.
	Retention time.Duration
	// MaxChanges bounds the changes that one poll takes; when there are more, everything cached is
	// looked at as changed. 0 = 200,000.
	MaxChanges int
	// Scopes is the size of the directory; 0 = [DefaultScopes].
	Scopes int
	Logger *slog.Logger // nil = slog.Default()
	// Random draws a number below n, from 0 on, for the jitter between polls; nil = [rand.Int64N]. It is
	// for simulations that must repeat.
	Random func(n int64) int64
}

// ErrTrackerClosed is why a barrier fails after [Tracker.Close].
var ErrTrackerClosed = errors.New("coherence: tracker is closed")

// errUnproven: the poll came back, but what it saw cannot be relied on yet.
var errUnproven = errors.New("coherence: the log was reset while it was polled")

// Tracker follows the log in real time: one goroutine polls, events from the bus and from this node's
// writes come in between. It is safe for concurrent use.
type Tracker struct {
	config TrackerConfig
	log    *slog.Logger
	start  time.Time
	stamps Stamps
	latest atomic.Pointer[Poll] // nil = nothing is proven
	// generations are those of the latest poll or of one that comes to be it; nil = none has come back yet.
	generations atomic.Pointer[Generations]
	// doubts: scope -> since when changes of it may be missing in the log; never changed. nil = none.
	doubts atomic.Pointer[map[ScopeHash]Instant]

	wake   chan struct{} // asks for a poll at once; sent by barriers, never closed
	hurry  chan struct{} // asks for a poll soon; sent for events, never closed
	wanted chan struct{} // tells a poll under way that somebody waits; sent by barriers, never closed
	stop   context.CancelCauseFunc
	done   sync.WaitGroup
	closed chan struct{} // closed by Close

	sentAt Instant // of the last poll; the polling goroutine's own
	limit  int     // changes that the next poll takes; the polling goroutine's own

	mu       sync.Mutex
	follower *Follower // guarded by mu
	dir      *Directory
	next     *cohort // who waits for the next poll to be sent

	polls, pollErrors, changes, missed, refused, flushes, regenerations atomic.Uint64

	lag      Histogram // see TrackerStats
	failing  atomic.Bool
	pollTime atomic.Int64 // ns, of the last successful poll
}

// cohort is the callers that wait for one poll.
type cohort struct {
	done chan struct{} // closed when the poll is back; err and poll are set before
	poll *Poll
	err  error
	size int // callers that have come; guarded by the tracker's mu
}

func newCohort() *cohort { return &cohort{done: make(chan struct{})} }

// NewTracker makes a tracker and starts to poll. [Tracker.Close] ends it.
func NewTracker(c TrackerConfig) *Tracker {
	c.Interval = cmp.Or(c.Interval, 250*time.Millisecond)
	c.Retention = cmp.Or(c.Retention, time.Hour)
	c.MaxChanges = cmp.Or(c.MaxChanges, 200_000)
	if c.Random == nil {
		c.Random = rand.Int64N
	}
	dir := NewDirectory(c.Scopes)
	ctx, stop := context.WithCancelCause(context.Background())
	t := &Tracker{
		config:   c,
		log:      cmp.Or(c.Logger, slog.Default()),
		start:    time.Now(),
		wake:     make(chan struct{}, 1),
		hurry:    make(chan struct{}, 1),
		wanted:   make(chan struct{}, 1),
		stop:     stop,
		closed:   make(chan struct{}),
		dir:      dir,
		follower: NewFollower(c.Boot, dir),
		next:     newCohort(),
		limit:    c.MaxChanges,
	}
	t.done.Go(func() { t.run(ctx) })
	return t
}

// Close stops polling, fails the barriers that wait, and closes the log.
func (t *Tracker) Close() error {
	t.stop(ErrTrackerClosed)
	t.done.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.closed:
		return nil
	default:
	}
	close(t.closed)
	t.latest.Store(nil)
	return t.config.Log.Close()
}

// Now is the present on the tracker's monotonic clock.
func (t *Tracker) Now() Instant { return Instant(time.Since(t.start)) }

// Latest is the poll that answers are checked against; nil = nothing is proven. A reader that looks
// at stamps must call it before.
func (t *Tracker) Latest() *Poll { return t.latest.Load() }

// Failing reports whether the last poll failed.
func (t *Tracker) Failing() bool { return t.failing.Load() }

// Generations are the current ones, as of the latest poll or a later one. A reader that looks at stamps,
// too, must do that before: they are raised behind new generations, and before the poll that brought
// these becomes the latest.
func (t *Tracker) Generations() *Generations { return t.generations.Load() }

// Stamps are raised before the poll that brought the change becomes the latest.
func (t *Tracker) Stamps() *Stamps { return &t.stamps }

// Barrier returns after a poll that was sent after the call, so that every commit acknowledged before
// the call is known. Callers share polls. The error says that there was no such poll.
func (t *Tracker) Barrier(ctx context.Context) (*Poll, error) { return t.barrier(ctx, 0) }

// barrier is Barrier for a caller that can wait for so long until the poll is sent, if none is before.
func (t *Tracker) barrier(ctx context.Context, patience time.Duration) (*Poll, error) {
	t.mu.Lock()
	c := t.next
	c.size++
	if patience <= 0 {
		ask(t.wake)
		ask(t.wanted)
	} else {
		timer := time.AfterFunc(patience, func() { t.want(c) })
		defer timer.Stop()
	}
	t.mu.Unlock()
	select {
	case <-c.done:
		return c.poll, c.err
	case <-ctx.Done():
		return nil, fmt.Errorf("coherence: barrier: %w", context.Cause(ctx))
	case <-t.closed:
		return nil, ErrTrackerClosed
	}
}

// want asks for a poll if the cohort still waits for one.
func (t *Tracker) want(c *cohort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == c {
		ask(t.wake)
	}
}

// patientKey is under which the context of a poll that nobody waits for holds a channel: it receives
// when somebody comes to wait for the next poll.
type patientKey struct{}

// ask for a poll over a channel that holds one request. The caller holds mu.
func ask(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is asked for already
	}
}

// granted takes back a request. The caller holds mu.
func granted(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// Observe takes an event from the bus or from this node's writes.
func (t *Tracker) Observe(e Event) {
	t.mu.Lock()
	t.dir.now = t.Now()
	do := t.follower.Step(e)
	t.apply(do)
	if do.Poll {
		ask(t.hurry)
	}
	t.mu.Unlock()
}

// apply carries out all effects but polling. The caller holds mu.
func (t *Tracker) apply(do Effects) {
	for _, scope := range do.Raised {
		t.stamps.raise(scope)
	}
	if do.Generations != nil {
		t.generations.Store(do.Generations)
		t.regenerations.Add(1)
	}
	if do.Flush != "" || do.Generations != nil {
		t.stamps.flush()
	}
	if do.Flush != "" {
		t.flushes.Add(1)
		t.log.Warn("coherence: everything cached is looked at as changed", "reason", string(do.Flush))
	}
	if do.Unproven {
		t.latest.Store(nil)
	}
	if do.Latest != nil {
		t.latest.Store(do.Latest)
	}
	if do.Learned > 0 {
		t.lag.ObserveMany(t.Now().Sub(do.LearnedSince), do.Learned)
	}
	t.changes.Add(uint64(len(do.Raised)))
	t.missed.Add(do.Missed)
	t.refused.Add(do.Refused)
}

// Polls that events ask for, such as a gap in the hints, are at least this part of the interval apart:
// a lossy bus must not make the node poll without pause.
const hurryPart = 10

// run is the polling goroutine.
func (t *Tracker) run(ctx context.Context) {
	var (
		due    Instant       // when the next regular poll is to be sent
		pause  time.Duration // after a failed poll; 0 = the last one came back
		trimAt = t.Now().Add(t.jitter(t.config.Retention / 50))
		timer  = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		// Barriers that come after a failed poll wait for the next attempt, which is not made at once: a
		// server that refuses connections must not be asked in a loop.
		wake, hurry := t.wake, t.hurry
		if pause > 0 {
			wake, hurry = nil, nil
		}
		select {
		case <-ctx.Done():
			t.finish(context.Cause(ctx))
			return
		case <-hurry:
			if soon := t.sentAt.Add(t.config.Interval / hurryPart); soon < due {
				due = soon
				timer.Reset(due.Sub(t.Now()))
			}
			continue
		case <-timer.C:
		case <-wake:
		}
		if t.poll(ctx) {
			pause = 0
			if t.Now() >= trimAt {
				trimAt = t.Now().Add(t.trim(ctx))
			}
			due = t.Now().Add(t.jitter(t.config.Interval))
		} else {
			pause = min(max(2*pause, 20*time.Millisecond), t.config.Interval)
			due = t.Now().Add(t.jitter(pause))
		}
		timer.Reset(due.Sub(t.Now()))
	}
}

// maxYields bounds how often a poll lets other goroutines go first.
const maxYields = 16

// gather lets callers that are about to ask for a poll do so, as long as more come: a crowd that begins
// at once then shares few polls, however long the scheduler takes to let all of it begin.
func (t *Tracker) gather() {
	before, quiet := 1, 0
	for range maxYields {
		t.mu.Lock()
		now := t.next.size
		t.mu.Unlock()
		if now > before {
			quiet = 0
		} else if quiet++; now <= 1 || quiet > 2 {
			return
		}
		before = now
		runtime.Gosched()
	}
}

// poll sends one poll, or another when the first cannot be relied on, and answers the cohort.
func (t *Tracker) poll(ctx context.Context) bool {
	t.gather()
	t.mu.Lock()
	waiting := t.next
	t.next = newCohort()
	// Whoever has asked by now is served by this poll.
	granted(t.wake)
	granted(t.hurry)
	granted(t.wanted)
	if waiting.size == 0 {
		ctx = context.WithValue(ctx, patientKey{}, (<-chan struct{})(t.wanted))
	}
	t.mu.Unlock()
	for range 4 {
		waiting.poll, waiting.err = t.pollOnce(ctx)
		if !errors.Is(waiting.err, errUnproven) {
			break
		}
	}
	failed := waiting.err != nil
	changed := failed != t.failing.Swap(failed)
	close(waiting.done)
	if changed {
		if failed {
			t.log.Warn("coherence: polling fails; nothing newer can be proven", "error", waiting.err)
		} else {
			t.log.Info("coherence: polling works again")
		}
	}
	return !failed
}

// minChanges is the least that a poll asks for after polls that took too long.
const minChanges = 1000

// pollOnce is called by the polling goroutine only.
func (t *Tracker) pollOnce(ctx context.Context) (*Poll, error) {
	t.mu.Lock()
	since, mark := t.follower.Send()
	t.mu.Unlock()
	sent := t.Now()
	t.sentAt = sent
	result, err := t.config.Log.Poll(ctx, since, t.limit)
	if err != nil {
		t.pollErrors.Add(1)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// There may be more changes than come through in time, and the next poll would find even
			// more: rather flush than never catch up.
			t.limit = max(t.limit/4, min(t.limit, minChanges))
		}
		return nil, err
	}
	t.limit = t.config.MaxChanges
	t.polls.Add(1)
	t.pollTime.Store(int64(t.Now().Sub(sent)))
	t.mu.Lock()
	t.dir.now = t.Now()
	do := t.follower.Step(PollReturned{Sent: sent, Mark: mark, Result: result})
	t.apply(do)
	t.mu.Unlock()
	if do.Renew != 0 || result.Snapshot.Timeline == 0 {
		if err := t.config.Log.Renew(ctx, do.Renew); err != nil {
			return nil, err
		}
	}
	if do.Latest == nil {
		return nil, errUnproven
	}
	return do.Latest, nil
}

// trim deletes old changes and returns when to do it again.
func (t *Tracker) trim(ctx context.Context) time.Duration {
	if l, ok := t.config.Log.(*RelayedLog); ok && l.relaying {
		return t.jitter(t.config.Retention / 50) // the relay's member does it
	}
	n, err := t.config.Log.Trim(ctx, t.config.Retention)
	if err != nil {
		t.log.Warn("coherence: old changes stay in the log for now", "error", err)
	}
	if n > 0 {
		return t.config.Interval // there may be more
	}
	return t.jitter(t.config.Retention / 50)
}

// finish fails the barriers that wait for a poll that will not be sent.
func (t *Tracker) finish(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next.err = cause
	close(t.next.done)
}

// jitter is d within a fifth of it either way, so that nodes do not act in step.
func (t *Tracker) jitter(d time.Duration) time.Duration {
	return d - d/5 + time.Duration(t.config.Random(max(int64(2*d/5), 1)))
}

// TrackerStats are counts since the start.
type TrackerStats struct {
	Polls, PollErrors uint64
	PollTime          time.Duration // of the last successful poll
	Changes           uint64        // scopes that changed, as they became known
	HintsMissed       uint64        // published by others and not heard
	HintsRefused      uint64        // of another timeline, or absurd
	Flushes           uint64
	Regenerations     uint64 // polls that brought other generations, the first included
	Unsettled         int    // scopes with changes that no poll has seen yet
	// Lag is, for each change that nothing told of before a poll did, how long ago it may have been committed: the
	// time since the poll before was sent, which did not see it, on this node's monotonic clock. It bounds the
	// delay from above and trusts no other clock. Those of the first poll are not counted.
	Lag Durations
}

// Stats are the counts by now.
func (t *Tracker) Stats() TrackerStats {
	t.mu.Lock()
	unsettled := len(t.dir.unsettled)
	t.mu.Unlock()
	return TrackerStats{
		Polls: t.polls.Load(), PollErrors: t.pollErrors.Load(), PollTime: time.Duration(t.pollTime.Load()),
		Changes: t.changes.Load(), HintsMissed: t.missed.Load(), HintsRefused: t.refused.Load(),
		Flushes: t.flushes.Load(), Regenerations: t.regenerations.Load(), Unsettled: unsettled,
		Lag: t.lag.Durations(),
	}
}
