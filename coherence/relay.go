package coherence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNoRelay is what [RelayConfig.Ask] returns when this node is to poll for itself.
var ErrNoRelay = errors.New("coherence: no relay")

// RelayConfig describes a [RelayedLog].
type RelayConfig struct {
	// Direct is the log itself; required. The RelayedLog owns it.
	Direct Log
	// Ask sends the request to the relay and returns its answer, see [Relay.Answer]; [ErrNoRelay] when
	// there is none to ask, at once. It must heed its context. Required.
	Ask func(ctx context.Context, request []byte) ([]byte, error)
	// Patience is how long a relay may put off a poll that nobody waits for, so that many share it: it
	// adds to the age of what this node knows. 0 = 125 ms, half of the default interval between polls.
	Patience time.Duration
	// Timeout bounds the wait for an answer, patience apart; 0 = 100 ms.
	Timeout time.Duration
	// Silence is how long a relay that failed is not asked again, with as much again as jitter; 0 = 1 s.
	Silence time.Duration
	// Idle is how long the connection of Direct is kept without a poll over it; 0 = 10 s.
	Idle time.Duration
}

// RelayedLog is a log that is polled by way of another member, the relay, so that the polls which reach
// Postgres do not grow with the members. It weakens nothing:
//
//   - A relay answers with a poll that it sent after the request had come. So whatever had committed
//     before the caller's Poll began is seen, as if the caller had polled for itself; age is counted from
//     that moment by the caller's own clock, and no clock is compared with another's.
//   - The answer has every change that the caller's snapshot does not see and the relay's does, or it is
//     none: the relay's memory of changes begins at a snapshot, and answers only who is not behind that.
//     The horizon is passed on as it was.
//   - Snapshots of one primary are ordered as they were taken. The caller has its last one already when it
//     asks, whoever brought it, so the relay's poll is later and includes it. An answer that does not, or
//     of another timeline, is not believed: the caller polls for itself and judges what it sees.
//
// As a node trusts that its own connection leads to the primary, it trusts that its relay's does. What has
// no answer in time, or none that can be used, is polled from Direct within the same call. Trimming is
// left to those who poll for themselves.
//
// Poll, Renew, Trim and Close are for one caller at a time, as those of a [Log]; a [Relay] on it may answer
// at the same time.
type RelayedLog struct {
	config RelayConfig

	// Of the caller alone.
	silent   time.Time    // the relay is not asked until then
	direct   time.Time    // last use of Direct; zero = its connection has been closed since
	ids      uint64       // of requests
	relaying bool         // the last poll came by a relay
	known    *Generations // of the last poll; nil = there was none

	mu      sync.Mutex
	ring    ring
	waiting int                // requests of others that wait for a poll of this node
	asking  context.CancelFunc // ends the question to the relay that is under way; nil = none

	polls, relayed, vain, answered atomic.Uint64
}

// idler is a log whose connection can be closed until it is needed again.
type idler interface{ Idle() }

var (
	_ Log   = (*RelayedLog)(nil)
	_ idler = (*PostgresLog)(nil)
)

// NewRelayedLog makes a log that asks before it polls.
func NewRelayedLog(c RelayConfig) *RelayedLog {
	c.Patience = min(cmp.Or(c.Patience, 125*time.Millisecond), maxRelayPatience)
	c.Timeout = cmp.Or(c.Timeout, 100*time.Millisecond)
	c.Silence = cmp.Or(c.Silence, time.Second)
	c.Idle = cmp.Or(c.Idle, 10*time.Second)
	return &RelayedLog{config: c, ids: rand.Uint64()}
}

// RelayStats are counts since the start.
type RelayStats struct {
	Direct   uint64 // polls sent to Postgres
	Relayed  uint64 // polls that came by a relay
	Vain     uint64 // polls sent to Postgres since the relay had no answer; they are also in Direct
	Answered uint64 // polls given to others
}

// Stats are the counts by now.
func (l *RelayedLog) Stats() RelayStats {
	return RelayStats{Direct: l.polls.Load(), Relayed: l.relayed.Load(), Vain: l.vain.Load(), Answered: l.answered.Load()}
}

// Poll implements [Log]. It takes as long as Direct at most and Timeout, and Patience if nobody waits.
func (l *RelayedLog) Poll(ctx context.Context, since Snapshot, limit int) (PollResult, error) {
	p, err := l.ask(ctx, since, limit)
	if err != nil {
		if ctx.Err() != nil {
			return PollResult{}, fmt.Errorf("coherence: poll: %w", context.Cause(ctx))
		}
		if !errors.Is(err, ErrNoRelay) {
			l.vain.Add(1)
		}
		l.polls.Add(1)
		l.direct = time.Now()
		if p, err = l.config.Direct.Poll(ctx, since, limit); err != nil {
			return PollResult{}, err
		}
	} else {
		l.relayed.Add(1)
		l.rest()
	}
	l.known = p.Generations
	l.mu.Lock()
	l.ring.put(since, p, time.Now())
	l.mu.Unlock()
	return p, nil
}

// errUnknown: the relay has no answer to this question, but may have one to the next.
var errUnknown = errors.New("coherence: the relay cannot tell")

// ask asks the relay.
func (l *RelayedLog) ask(ctx context.Context, since Snapshot, limit int) (PollResult, error) {
	l.relaying = false
	if since.Timeline == 0 || time.Now().Before(l.silent) {
		return PollResult{}, ErrNoRelay
	}
	wanted, patient := ctx.Value(patientKey{}).(<-chan struct{})
	if patient {
		p, err := l.askOnce(ctx, since, limit, l.config.Patience, wanted)
		if !errors.Is(err, errWanted) {
			return p, err
		}
	}
	return l.askOnce(ctx, since, limit, 0, nil)
}

// errWanted: somebody waits for the next poll, so that this one must not be put off any more.
var errWanted = errors.New("coherence: the poll is wanted now")

func (l *RelayedLog) askOnce(ctx context.Context, since Snapshot, limit int, patience time.Duration, wanted <-chan struct{}) (PollResult, error) {
	l.ids++
	q := relayRequest{id: l.ids, patience: patience, since: since, version: l.known.Version()}
	request, err := appendRelayRequest(nil, q)
	if err != nil {
		return PollResult{}, err
	}
	asked, cancel := context.WithTimeout(ctx, patience+l.config.Timeout)
	defer cancel()
	if !l.begin(cancel) {
		return PollResult{}, ErrNoRelay
	}
	hurried := make(chan bool, 1)
	go func() {
		select {
		case <-wanted:
			hurried <- true
			cancel()
		case <-asked.Done():
			hurried <- false
		}
	}()
	answer, err := l.config.Ask(asked, request)
	cancel()
	hurry, called := <-hurried, l.end()
	switch {
	case err == nil:
	case errors.Is(err, ErrNoRelay) || called:
		return PollResult{}, ErrNoRelay
	case hurry:
		return PollResult{}, errWanted
	default:
		l.avoid()
		return PollResult{}, fmt.Errorf("coherence: ask the relay: %w", err)
	}
	p, err := q.read(answer, limit, l.known)
	if err != nil && !errors.Is(err, errUnknown) {
		l.avoid()
	}
	l.relaying = err == nil
	return p, err
}

// read takes the answer, if it is one to the request and makes sense. known are the generations whose
// version the request names.
func (q relayRequest) read(answer []byte, limit int, known *Generations) (PollResult, error) {
	a, err := decodeRelayAnswer(answer)
	switch {
	case err != nil:
		return PollResult{}, err
	case a.id != q.id:
		return PollResult{}, errRelay
	case !a.known, len(a.poll.Changes) > limit:
		return PollResult{}, errUnknown
	case !a.poll.Snapshot.Includes(q.since):
		return PollResult{}, errUnknown
	}
	if a.same {
		a.poll.Generations = known
	}
	for _, c := range a.poll.Changes {
		if q.since.Sees(c.XID) || !a.poll.Snapshot.Sees(c.XID) {
			return PollResult{}, errRelay
		}
	}
	return a.poll, nil
}

// begin says that the relay is being asked. It does not when others wait for this node's poll: whoever is
// asked never asks on, so that two views of who relays cannot make a circle.
func (l *RelayedLog) begin(cancel context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting > 0 {
		return false
	}
	l.asking = cancel
	return true
}

// end says that it is not, and whether others have come to wait meanwhile.
func (l *RelayedLog) end() (called bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asking = nil
	return l.waiting > 0
}

// avoid leaves the relay alone for a while. The jitter keeps its askers from coming back in step.
func (l *RelayedLog) avoid() {
	l.silent = time.Now().Add(l.config.Silence + rand.N(l.config.Silence))
}

// rest closes the connection to Postgres when it has not been used for long.
func (l *RelayedLog) rest() {
	if l.direct.IsZero() || time.Since(l.direct) < l.config.Idle {
		return
	}
	l.direct = time.Time{}
	if direct, ok := l.config.Direct.(idler); ok {
		direct.Idle()
	}
}

// Renew implements [Log]; it is always direct.
func (l *RelayedLog) Renew(ctx context.Context, broken uint64) error {
	l.direct = time.Now()
	return l.config.Direct.Renew(ctx, broken)
}

// Trim implements [Log]; it is always direct.
func (l *RelayedLog) Trim(ctx context.Context, keep time.Duration) (int, error) {
	l.direct = time.Now()
	return l.config.Direct.Trim(ctx, keep)
}

// Close closes Direct.
func (l *RelayedLog) Close() error { return l.config.Direct.Close() }

// Relay answers the polls of other members by those of this one.
type Relay struct {
	Log     *RelayedLog
	Tracker *Tracker // that polls Log
}

// Answer answers a request by a poll that is sent after the call, sharing it with whoever else waits for
// one, at once or within the patience of the request. It always answers, if only that it cannot tell; it
// returns when ctx ends. It may be called from any goroutine.
func (r Relay) Answer(ctx context.Context, request []byte) []byte {
	q, err := decodeRelayRequest(request)
	if err != nil {
		return encodeRelayAnswer(relayAnswer{})
	}
	a := relayAnswer{id: q.id}
	r.Log.wait(1)
	defer r.Log.wait(-1)
	if _, err := r.Tracker.barrier(ctx, q.patience); err == nil {
		a.poll, a.known = r.Log.since(q.since)
		a.same = a.poll.Generations.Version() == q.version
	}
	if a.known {
		r.Log.answered.Add(1)
	}
	return encodeRelayAnswer(a)
}

// wait counts those who wait for a poll of this node, and ends a question of its own to a relay.
func (l *RelayedLog) wait(more int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting += more
	if l.waiting > 0 && l.asking != nil {
		l.asking()
	}
}

func (l *RelayedLog) since(s Snapshot) (PollResult, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ring.since(s)
}
